import { sql } from "kysely";
import type { CronJobRow, Db } from "../db/schema.ts";

/** Most tokens of a monitor that are good at a time. One more replacement ends the oldest at once. */
const MAX_LIVE = 4;

/** The monitor that a token is of. */
export interface PingedMonitor {
  readonly projectId: string;
  readonly cronId: string;
}

/** The monitor that is pinged by the token with this hash, or undefined. */
export async function findPinged(db: Db, tokenHash: Buffer): Promise<PingedMonitor | undefined> {
  const { rows } = await sql<PingedMonitor>`
    select project_id as "projectId", cron_id as "cronId" from ping_tokens
    where token_hash = ${tokenHash} and (valid_until is null or valid_until > carillon_now())`.execute(db);
  return rows[0];
}

/**
 * Makes a token the monitor's current one, and the one before it good for `overlapSeconds` more. Returns until when.
 * The caller holds the job's lock, or has just made it.
 */
export async function replacePingToken(
  trx: Db,
  { project_id: projectId, cron_id: cronId }: Pick<CronJobRow, "project_id" | "cron_id">,
  tokenHash: Buffer,
  overlapSeconds: number,
): Promise<Date | undefined> {
  const { rows } = await sql<{ valid_until: Date }>`
    update ping_tokens set valid_until = carillon_now() + make_interval(secs => ${overlapSeconds})
    where project_id = ${projectId} and cron_id = ${cronId} and valid_until is null
    returning valid_until`.execute(trx);
  await sql`
    insert into ping_tokens (token_hash, project_id, cron_id) values (${tokenHash}, ${projectId}, ${cronId})`.execute(
    trx,
  );
  await sql`
    delete from ping_tokens
    where project_id = ${projectId} and cron_id = ${cronId} and valid_until is not null and (
      valid_until <= carillon_now() or token_hash not in (
        select token_hash from ping_tokens where project_id = ${projectId} and cron_id = ${cronId}
        order by created_at desc, valid_until desc nulls first limit ${MAX_LIVE}))`.execute(trx);
  return rows[0]?.valid_until;
}

/** Ends every token of the job. */
export async function endPingTokens(trx: Db, job: Pick<CronJobRow, "project_id" | "cron_id">): Promise<void> {
  await trx
    .deleteFrom("ping_tokens")
    .where("project_id", "=", job.project_id)
    .where("cron_id", "=", job.cron_id)
    .execute();
}

/** Deletes up to `limit` tokens that have ended, and returns how many. */
export async function prunePingTokens(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from ping_tokens where token_hash = any(array(
      select token_hash from ping_tokens where valid_until <= carillon_now() limit ${limit} for update skip locked))`.execute(
    db,
  );
  return Number(numAffectedRows ?? 0n);
}
