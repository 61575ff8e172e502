import { setTimeout as delay } from "node:timers/promises";
import type { Config } from "./config.ts";
import { isConnectionFault } from "./db/connect.ts";
import { migrate } from "./db/migrate.ts";
import type { Db } from "./db/schema.ts";
import { durabilityOf, readServerState } from "./db/server-state.ts";
import { makeClockReal, makeClockVirtual } from "./db/virtual-clock.ts";
import type { Logger } from "./log.ts";
import { missingVaultKeys, sealPlainKeys } from "./store/sealed-values.ts";
import type { Vault } from "./vault/vault.ts";

/** How long a database that is still starting is waited for, in milliseconds. */
const DATABASE_WAIT_MS = 60_000;

/** Migrates as soon as the database takes connections. @throws Error in one line when it takes none within a minute */
export async function migrateWhenReady(db: Db, log: Logger): Promise<void> {
  const deadlineAt = performance.now() + DATABASE_WAIT_MS;
  for (let told = false; ; told = true) {
    try {
      const applied = await migrate(db);
      if (applied.length > 0) log.info({ applied }, "the schema was brought up to date");
      return;
    } catch (error) {
      if (!isConnectionFault(error)) throw error;
      if (performance.now() > deadlineAt) {
        throw new Error(`the database cannot be reached: ${(error as Error).message}`, { cause: error });
      }
      if (!told) log.warn({ err: error }, "the database cannot be reached yet; trying for a minute");
      await delay(500);
    }
  }
}

/** Makes the database's clock what the settings say. Returns where it stands, if it is virtual. @throws Error in one line */
export async function settleClock(db: Db, config: Config, log: Logger): Promise<Date | undefined> {
  if (config.virtualClock) return makeClockVirtual(db);
  const stoodAt = await makeClockReal(db);
  if (stoodAt !== undefined) {
    const about = "the database's clock was virtual and tells the real time again; what it held may lie in the future";
    log.warn({ clock_was_at: stoodAt }, about);
  }
  return undefined;
}

/** Seals what older versions stored as text. @throws Error when something is sealed by a key that is not in the vault. */
export async function sealStoredSecrets(db: Db, vault: Vault, log: Logger): Promise<void> {
  const sealed = await sealPlainKeys(db, (text, place) => vault.seal(text, place));
  if (sealed > 0) log.info({ sealed }, "secrets that were stored as text are sealed now");
  const missing = await missingVaultKeys(db, vault.seals);
  if (missing.length === 0) return;
  throw new Error(
    `secrets in the database are sealed by the key ${missing.join(", ")}, which CARILLON_SECRETS_KEY does not hold`,
  );
}

/** Says what an acknowledgement of the database is worth. */
export async function logDurability(db: Db, log: Logger): Promise<void> {
  const state = await readServerState(db);
  const durability = durabilityOf(state);
  const about = { postgres: state.version, durability };
  if (durability === "power-safe") log.info(about, "the database keeps what it acknowledged, power loss included");
  else log.warn(about, "the database may lose what it acknowledged: carillon doctor says more");
}
