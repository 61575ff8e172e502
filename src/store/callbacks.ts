import { sql } from "kysely";
import type { Db } from "../db/schema.ts";

/** An event that is to be sent. */
export interface NewCallback {
  /** The webhook that it is for, whose url and keys are used as they are then; null for a target of its own. */
  readonly webhookId: string | null;
  readonly url: string;
  readonly body: Buffer;
  /** The cron job or task whose keys sign it. Null: the webhook's, or the project's. */
  readonly signerId: string | null;
}

/**
 * Stores events, each with the run that delivers it: the engine of all runs sends them, with retries of their own.
 * Returns the ids of the runs, in order. `trigger` is what caused them.
 */
export async function insertCallbacks(
  trx: Db,
  projectId: string,
  callbacks: readonly NewCallback[],
  trigger: "message" | "test" = "message",
): Promise<string[]> {
  if (callbacks.length === 0) return [];
  const { rows } = await sql<{ run_id: string }>`
    with given as materialized (
      select carillon_id() as callback_id, carillon_id() as run_id, n, webhook_id, url, body, signer_id
      from unnest(${callbacks.map((one) => one.webhookId)}::uuid[], ${callbacks.map((one) => one.url)}::text[],
                  ${callbacks.map((one) => one.body)}::bytea[], ${callbacks.map((one) => one.signerId)}::uuid[])
           with ordinality as given (webhook_id, url, body, signer_id, n)
    ),
    stored as (
      insert into callbacks (project_id, callback_id, webhook_id, url, body, signer_id)
      select ${projectId}, callback_id, webhook_id, url, body, signer_id from given
    ),
    started as (
      insert into runs (project_id, run_id, kind, callback_id, endpoint_id, state, trigger, fire_at, run_at)
      select ${projectId}, run_id, 'callback', callback_id, carillon_endpoint_id(url), 'pending', ${trigger},
        carillon_now(), carillon_now()
      from given
    )
    select run_id from given order by n`.execute(trx);
  return rows.map(({ run_id }) => run_id);
}

/** Calls off what is on its way to a webhook. An attempt under way finishes, and is not made again. */
export async function cancelCallbacks(trx: Db, projectId: string, webhookId: string, error: string): Promise<void> {
  await sql`
    update runs set state = 'canceled', error = ${error}, finished_at = carillon_now(),
      expires_at = carillon_now() + interval '30 days'
    where project_id = ${projectId} and state in ('pending', 'retrying')
      and callback_id in (select callback_id from callbacks where project_id = ${projectId} and webhook_id = ${webhookId})`.execute(
    trx,
  );
}
