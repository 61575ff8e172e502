import { type RawBuilder, sql } from "kysely";
import type { Db, SigningKeyRow } from "../db/schema.ts";
import type { KeyOwner, SealedKey, SigningAlgorithm } from "../domain/signing-key.ts";

/** Most keys of one owner and algorithm that sign at a time. One more replacement ends the oldest at once. */
const MAX_LIVE = 4;

/** A key that is to sign, sealed. */
export interface NewSigningKey {
  readonly algorithm: SigningAlgorithm;
  readonly sealed: string;
  /** Of a key pair. */
  readonly publicKey: Uint8Array | null;
}

/**
 * The keys that sign what `owner` sends, current ones first, as JSON of SealedKey[]: its own secrets or, where it has
 * none, its project's, and the project's key pairs. `owner` may be null. Both are SQL expressions.
 *
 * Few owners have keys of their own. Where `project` is the same for all rows, what signs for the others is read once.
 */
export function signersOf(project: RawBuilder<string>, owner: RawBuilder<string | null>): RawBuilder<SealedKey[]> {
  const own = (also: RawBuilder<unknown>) => sql`
    select from signing_keys o where o.project_id = ${project} and o.owner_id = ${owner} ${also}`;
  const keys = (which: RawBuilder<unknown>) => sql`(
    select coalesce(jsonb_agg(jsonb_build_object('projectId', k.project_id, 'ownerId', k.owner_id,
      'algorithm', k.algorithm, 'sealed', k.sealed) order by k.valid_until desc, k.key_id desc), '[]')
    from signing_keys k
    where k.project_id = ${project} and (k.valid_until is null or k.valid_until > carillon_now()) and ${which})`;
  return sql<SealedKey[]>`
    case when exists (${own(sql``)}) then ${keys(sql`
      k.owner_id in (${owner}, ${project}) and (k.owner_id = ${owner} or k.algorithm = 'v1a'
        or not exists (${own(sql`and o.algorithm = 'v1' and o.valid_until is null`)}))`)}
    else ${keys(sql`k.owner_id = ${project}`)} end`;
}

/** The owner's current key, or undefined. */
export async function currentSigningKey(
  db: Db,
  { projectId, ownerId }: KeyOwner,
  algorithm: SigningAlgorithm,
): Promise<SigningKeyRow | undefined> {
  return db
    .selectFrom("signing_keys")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("owner_id", "=", ownerId)
    .where("algorithm", "=", algorithm)
    .where("valid_until", "is", null)
    .executeTakeFirst();
}

/** Sets the owner's secret at once, without an overlap; null takes it away, so that the project's signs. */
export async function setSigningSecret(trx: Db, owner: KeyOwner, sealed: string | null): Promise<void> {
  await trx
    .deleteFrom("signing_keys")
    .where("project_id", "=", owner.projectId)
    .where("owner_id", "=", owner.ownerId)
    .where("algorithm", "=", "v1")
    .execute();
  if (sealed !== null) await insertKey(trx, owner, { algorithm: "v1", sealed, publicKey: null });
}

/**
 * Makes a key the owner's current one. The one before it goes on signing for `overlapSeconds`; undefined is returned
 * where there was none, else when that ends. Whoever else replaces a key of the project waits until the caller commits.
 */
export async function replaceSigningKey(
  trx: Db,
  owner: KeyOwner,
  key: NewSigningKey,
  overlapSeconds: number,
): Promise<{ readonly row: SigningKeyRow; readonly previousValidUntil: Date | undefined }> {
  const { projectId, ownerId } = owner;
  await sql`select from projects where project_id = ${projectId} for no key update`.execute(trx);
  const { rows } = await sql<{ valid_until: Date }>`
    update signing_keys set valid_until = carillon_now() + make_interval(secs => ${overlapSeconds})
    where project_id = ${projectId} and owner_id = ${ownerId} and algorithm = ${key.algorithm} and valid_until is null
    returning valid_until`.execute(trx);
  const row = await insertKey(trx, owner, key);
  await sql`
    delete from signing_keys where project_id = ${projectId} and owner_id = ${ownerId} and algorithm = ${key.algorithm}
      and valid_until is not null and (valid_until <= carillon_now() or key_id not in (
        select key_id from signing_keys
        where project_id = ${projectId} and owner_id = ${ownerId} and algorithm = ${key.algorithm}
        order by valid_until desc, key_id desc limit ${MAX_LIVE}))`.execute(trx);
  return { row, previousValidUntil: rows[0]?.valid_until };
}

async function insertKey(
  trx: Db,
  { projectId, ownerId }: KeyOwner,
  { algorithm, sealed, publicKey }: NewSigningKey,
): Promise<SigningKeyRow> {
  return trx
    .insertInto("signing_keys")
    .values({
      project_id: projectId,
      owner_id: ownerId,
      algorithm,
      sealed,
      public_key: publicKey === null ? null : Buffer.from(publicKey),
      valid_until: null,
    })
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** Deletes up to `limit` keys that have ended, and returns how many. */
export async function pruneSigningKeys(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from signing_keys where ctid = any(array(
      select ctid from signing_keys where valid_until <= carillon_now() limit ${limit} for update skip locked))`.execute(
    db,
  );
  return Number(numAffectedRows ?? 0n);
}

/** Up to `limit` of the project's own live keys, newest first, from the one before `before`. */
export async function listSigningKeys(
  db: Db,
  projectId: string,
  before: string | undefined,
  limit: number,
): Promise<SigningKeyRow[]> {
  return liveProjectKeys(db, projectId)
    .$if(before !== undefined, (query) => query.where("key_id", "<", before ?? ""))
    .limit(limit)
    .execute();
}

/** The project's live key pairs, newest first; undefined when there is no such project. */
export async function publicKeysOf(db: Db, projectId: string): Promise<SigningKeyRow[] | undefined> {
  const keys = await liveProjectKeys(db, projectId).execute();
  // Every project has a secret.
  return keys.length === 0 ? undefined : keys.filter(({ algorithm }) => algorithm === "v1a");
}

function liveProjectKeys(db: Db, projectId: string) {
  return db
    .selectFrom("signing_keys")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("owner_id", "=", projectId)
    .where((eb) => eb.or([eb("valid_until", "is", null), eb("valid_until", ">", sql<Date>`carillon_now()`)]))
    .orderBy("key_id", "desc");
}

/** Ends one of the project's own keys at once. `current`: it is the secret without which nothing can be sent. */
export async function endSigningKey(
  trx: Db,
  projectId: string,
  keyId: string,
): Promise<"ended" | "missing" | "current"> {
  const key = await liveProjectKeys(trx, projectId).where("key_id", "=", keyId).forUpdate().executeTakeFirst();
  if (key === undefined) return "missing";
  if (key.algorithm === "v1" && key.valid_until === null) return "current";
  await trx
    .deleteFrom("signing_keys")
    .where("project_id", "=", projectId)
    .where("owner_id", "=", projectId)
    .where("key_id", "=", keyId)
    .execute();
  return "ended";
}
