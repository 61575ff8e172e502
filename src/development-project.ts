import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Config } from "./config.ts";
import type { Db } from "./db/schema.ts";
import { hashApiKey, newApiKey } from "./domain/api-key.ts";
import { keyPlace } from "./domain/signing-key.ts";
import { ensureProject } from "./store/projects.ts";
import type { Vault } from "./vault/vault.ts";
import { newSecret } from "./webhook/sign.ts";

/** The project that the key of development mode opens. */
export const DEVELOPMENT_PROJECT = "default";

/** In the data directory: the key of development mode, so that it is the same after a restart. 0600. */
const KEY_FILE = "carillon.key";

/**
 * The project of development mode and its key: the configured one, or one that is made once and kept with the data. It
 * is never stored as a key, so that a database that later serves production does not accept it.
 */
export async function developmentProject(db: Db, vault: Vault, config: Config, dataDir: string | undefined) {
  const { project_id: projectId } = await ensureProject(db, DEVELOPMENT_PROJECT, (project) =>
    vault.seal(newSecret(), keyPlace(project, "v1")),
  );
  const key = config.apiKey?.reveal() ?? (dataDir === undefined ? newApiKey() : await keptKey(join(dataDir, KEY_FILE)));
  return { projectId, key, keyHash: hashApiKey(key) };
}

async function keptKey(file: string): Promise<string> {
  const kept = (await readFile(file, "utf8").catch(() => "")).trim();
  if (kept !== "") return kept;
  const key = newApiKey();
  await writeFile(file, `${key}\n`, { mode: 0o600 });
  return key;
}
