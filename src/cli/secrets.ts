import { resealAll, sealPlainKeys } from "../store/sealed-values.ts";
import { openMigratedDatabase } from "./open-database.ts";

/**
 * `carillon secrets reencrypt`: has everything sealed by the first key of the vault, beside running servers. Afterwards the
 * other keys can be taken away.
 */
export async function reencryptSecrets(): Promise<number> {
  await using database = await openMigratedDatabase();
  const vault = await database.openVault();
  const sealed = await sealPlainKeys(database.db, (text, place) => vault.seal(text, place));
  const resealed = await resealAll(database.db, vault.currentSeal, (stored, place) => vault.reseal(stored, place));
  console.log(`${sealed + resealed} secrets are sealed by the first key now; all others were before`);
  console.log(
    "Keep the other keys for as long as an idempotency key is remembered: answers that show a secret stay sealed by them.",
  );
  return 0;
}
