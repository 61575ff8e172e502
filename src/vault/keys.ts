import { randomBytes } from "node:crypto";
import { link, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import type { Config } from "../config.ts";
import { Vault } from "./vault.ts";

/** The file in which development mode keeps the key that it makes. */
export const VAULT_FILE = "carillon.secrets-key";

/** Between the keys of a list: blanks, commas, line ends. */
const SEPARATOR = /[\s,]+/;

/**
 * The vault of the keys in a text: one or more, each 32 bytes in base64, between commas or on lines of their own. The
 * first one seals.
 *
 * @throws RangeError that says what is wrong, and nothing of the keys.
 */
export function parseVault(text: string): Vault {
  const encoded = text.split(SEPARATOR).filter((part) => part !== "");
  if (encoded.length === 0) throw new RangeError("there is no key");
  return new Vault(
    encoded.map((part, index) => {
      const bytes = Buffer.from(part, "base64");
      if (bytes.length !== 32 || bytes.toString("base64") !== part) {
        throw new RangeError(`key ${index + 1} is not 32 bytes in base64, which openssl rand -base64 32 prints`);
      }
      return bytes;
    }),
  );
}

/** The vault of the keys in a file. @throws Error with the file's name when it cannot be read or used. */
export async function readVault(file: string): Promise<Vault> {
  try {
    return parseVault(await readFile(file, "utf8"));
  } catch (cause) {
    throw new Error(`${file}: ${(cause as Error).message}`, { cause });
  }
}

/**
 * The vault of the keys in a file, which is made with a random key when it is not there, readable by this user only.
 * Any number of processes may do so at once: all get the same key.
 */
export async function readOrMakeVault(file: string): Promise<Vault> {
  const fresh = `${file}.${randomBytes(6).toString("hex")}`;
  // The directory is one that PostgreSQL's account has to pass on its way to the data below it.
  await mkdir(dirname(file), { recursive: true, mode: 0o711 });
  try {
    await readFile(file);
  } catch {
    // Written elsewhere first, so that nobody reads half a key; link, unlike rename, leaves a file that was quicker.
    await writeFile(fresh, `${randomBytes(32).toString("base64")}\n`, { mode: 0o600 });
    await link(fresh, file).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
    });
    await rm(fresh, { force: true });
  }
  return readVault(file);
}

/**
 * The vault that the settings name. Without any, development mode makes a key in the file that `keptFile` names, and a
 * command uses the one that development mode has made there.
 *
 * @throws Error with one line for the operator when there is no key, or one that cannot be used.
 */
export async function openVault(config: Config, keptFile: () => Promise<string>): Promise<Vault> {
  if (config.secretsKey !== undefined) return parseVault(config.secretsKey.reveal());
  if (config.secretsKeyFile !== undefined) {
    return readVault(config.secretsKeyFile).catch((cause: Error) => {
      throw new Error(`CARILLON_SECRETS_KEY_FILE: ${cause.message}`, { cause });
    });
  }
  const file = await keptFile();
  if (config.mode === "development" || config.databaseUrl === undefined) return readOrMakeVault(file);
  return readVault(file).catch((cause: Error) => {
    throw new Error("CARILLON_SECRETS_KEY is not set: give the command the key that the servers have", { cause });
  });
}
