import { sql } from "kysely";
import { sqlState } from "../db/connect.ts";
import type { Db } from "../db/schema.ts";
import { Refusal } from "../errors.ts";

export interface IdempotencyClaim {
  readonly projectId: string;
  /** Name of the method. */
  readonly operation: string;
  /** What the path names: a queue, a cron job. Empty for none. */
  readonly resource: string;
  readonly key: string;
  /** Hash of the request without its key. */
  readonly fingerprint: Buffer;
  /** How long the key is remembered. */
  readonly ttlSeconds: number;
}

export type ClaimOutcome =
  | { readonly kind: "claimed" }
  | { readonly kind: "replay"; readonly reply: Buffer; readonly warning: string | null }
  | { readonly kind: "reused" };

/** How long a repeat waits for the first call with its key before it is refused, in milliseconds. */
const WAIT_MS = 3_000;
const LOCK_NOT_AVAILABLE = "55P03";

/**
 * Claims an idempotency key inside the caller's transaction. While another transaction holds the same key, this waits
 * for it; a claim that is rolled back leaves no trace.
 *
 * @throws Refusal IDEMPOTENCY_KEY_IN_USE when the other one takes too long. The transaction is spent then.
 */
export async function claimKey(trx: Db, claim: IdempotencyClaim): Promise<ClaimOutcome> {
  await sql`select set_config('lock_timeout', ${`${WAIT_MS}ms`}, true)`.execute(trx);
  const row = await lockKey(trx, claim).catch((error: unknown) => {
    if (sqlState(error) === LOCK_NOT_AVAILABLE) throw new Refusal("IDEMPOTENCY_KEY_IN_USE", {}, { cause: error });
    throw error;
  });
  await sql`select set_config('lock_timeout', '0', true)`.execute(trx);
  if (row.reply === null) return { kind: "claimed" };
  if (!row.fingerprint.equals(claim.fingerprint)) return { kind: "reused" };
  return { kind: "replay", reply: row.reply, warning: row.warning };
}

/** Inserts the key, or locks the row that has it. An expired row is as good as none. */
function lockKey(trx: Db, claim: IdempotencyClaim) {
  return trx
    .insertInto("idempotency_keys")
    .values({
      project_id: claim.projectId,
      operation: claim.operation,
      resource: claim.resource,
      key: claim.key,
      fingerprint: claim.fingerprint,
      reply: null,
      warning: null,
      expires_at: sql<Date>`carillon_now() + make_interval(secs => ${claim.ttlSeconds})`,
    })
    .onConflict((conflict) =>
      conflict.columns(["project_id", "operation", "resource", "key"]).doUpdateSet((eb) => ({
        fingerprint: sql`case when idempotency_keys.expires_at <= carillon_now() then ${eb.ref("excluded.fingerprint")} else idempotency_keys.fingerprint end`,
        reply: sql`case when idempotency_keys.expires_at <= carillon_now() then null else idempotency_keys.reply end`,
        expires_at: sql`case when idempotency_keys.expires_at <= carillon_now() then ${eb.ref("excluded.expires_at")} else idempotency_keys.expires_at end`,
      })),
    )
    .returning(["fingerprint", "reply", "warning"])
    .executeTakeFirstOrThrow();
}

/** Stores the answer under a key that this transaction has claimed. */
export async function storeReply(
  trx: Db,
  claim: IdempotencyClaim,
  answer: { readonly reply: Buffer; readonly warning: string | null },
): Promise<void> {
  await trx
    .updateTable("idempotency_keys")
    .set(answer)
    .where("project_id", "=", claim.projectId)
    .where("operation", "=", claim.operation)
    .where("resource", "=", claim.resource)
    .where("key", "=", claim.key)
    .execute();
}

/** Deletes up to `limit` expired keys and returns how many. */
export async function pruneIdempotencyKeys(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from idempotency_keys where ctid = any(array(
      select ctid from idempotency_keys where expires_at <= carillon_now() limit ${limit} for update skip locked))`.execute(
    db,
  );
  return Number(numAffectedRows ?? 0n);
}
