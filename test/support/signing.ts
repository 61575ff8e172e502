import type { Db } from "../../src/db/schema.ts";
import { type KeyOwner, keyPlace, type SealedKey } from "../../src/domain/signing-key.ts";
import { currentSigningKey } from "../../src/store/signing-keys.ts";
import { parseVault } from "../../src/vault/keys.ts";

/** CARILLON_SECRETS_KEY of every Carillon that a test starts. */
export const TEST_SECRETS_KEY = Buffer.alloc(32, "test").toString("base64");

/** The vault of that key. */
export const TEST_VAULT = parseVault(TEST_SECRETS_KEY);

/** Opens what is sealed by that key, as the egress of a server does. */
export function openSealed(...[sealed, place]: Parameters<typeof TEST_VAULT.openText>): string {
  return TEST_VAULT.openText(sealed, place);
}

/** Makes a project sign with that secret; for ensureProject. */
export function signsWith(secret = "secret"): (project: KeyOwner) => string {
  return (project) => TEST_VAULT.seal(secret, keyPlace(project, "v1"));
}

/** Signers with these secrets or private keys (`whsk_…`), as a store would read them. */
export function signersWith(...keys: readonly string[]): readonly SealedKey[] {
  const owner = { projectId: "project", ownerId: "project" };
  return keys.map((key) => {
    const algorithm = key.startsWith("whsk_") ? "v1a" : "v1";
    return { ...owner, algorithm, sealed: TEST_VAULT.seal(key, keyPlace(owner, algorithm)) };
  });
}

/** The current signing secret of the project of that name. */
export async function projectSecret(db: Db, name = "default"): Promise<string> {
  const { project_id: id } = await db
    .selectFrom("projects")
    .select("project_id")
    .where("name", "=", name)
    .executeTakeFirstOrThrow();
  const owner = { projectId: id, ownerId: id };
  const key = await currentSigningKey(db, owner, "v1");
  if (key === undefined) throw new Error(`project ${name} has no secret`);
  return TEST_VAULT.openText(key.sealed, keyPlace(owner, "v1"));
}
