import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import type { RunKey } from "./runs.ts";

/** A due run that is to be set apart, because its endpoint takes no more for now. */
export interface RunToPark extends RunKey {
  readonly endpointId: string;
  /** Of the endpoint, where its row may not be there yet; else undefined. */
  readonly address?: string | undefined;
}

/**
 * Sets the project's runs apart with their endpoint, so that nobody walks over them who looks for runs of others. They keep
 * their state and their attempts, and are taken when the endpoint is ready.
 *
 * The endpoint's lock keeps `clearParked` from overlooking what is parked at the same time.
 */
export async function parkRuns(trx: Db, projectId: string, runs: readonly RunToPark[]): Promise<void> {
  const records = runs.map(({ runId, endpointId, address }) => ({ run_id: runId, endpoint_id: endpointId, address }));
  const wanted = sql`jsonb_to_recordset(${JSON.stringify(records)}::jsonb) as w (run_id uuid, endpoint_id uuid, address text)`;
  await sql`
    insert into endpoints (project_id, endpoint_id, address)
    select distinct ${projectId}::uuid, w.endpoint_id, w.address from ${wanted}
    where w.address is not null and not exists (
      select from endpoints e where e.project_id = ${projectId} and e.endpoint_id = w.endpoint_id)
    order by 2 on conflict do nothing`.execute(trx);
  const { rows } = await sql<{ endpoint_id: string; marked: boolean }>`
    select endpoint_id, parked_since is not null as marked from endpoints
    where project_id = ${projectId} and endpoint_id in (select w.endpoint_id from ${wanted})
    order by endpoint_id for no key update`.execute(trx);
  const unmarked = rows.filter(({ marked }) => !marked).map(({ endpoint_id }) => endpoint_id);
  if (unmarked.length > 0) {
    await sql`
      update endpoints set parked_since = carillon_now()
      where project_id = ${projectId} and endpoint_id = any(${unmarked}::uuid[])`.execute(trx);
  }
  const known = rows.map(({ endpoint_id }) => endpoint_id);
  const runIds = runs.map(({ runId }) => runId);
  // By lists of ids, so that no plan reads more of the project's runs than these.
  await sql`
    update runs set parked = true
    where project_id = ${projectId} and run_id = any(array(
      select r.run_id from runs r
      where r.project_id = ${projectId} and r.run_id = any(${runIds}::uuid[])
        and r.endpoint_id = any(${known}::uuid[])
        and r.state in ('pending', 'retrying') and not r.waiting and not r.parked and r.run_at <= carillon_now()
      for update skip locked))`.execute(trx);
}

/** Takes the mark off those of the project's endpoints that have nothing parked any more. */
export async function clearParked(db: Db, projectId: string, endpointIds: readonly string[]): Promise<void> {
  await db.transaction().execute(async (trx) => {
    const { rows } = await sql<{ endpoint_id: string }>`
      select endpoint_id from endpoints
      where project_id = ${projectId} and endpoint_id = any(${endpointIds}::uuid[]) and parked_since is not null
      order by endpoint_id for no key update skip locked`.execute(trx);
    if (rows.length === 0) return;
    // A statement of its own: its snapshot is younger than the lock, and sees all that was parked before.
    await sql`
      update endpoints e set parked_since = null
      where e.project_id = ${projectId} and e.endpoint_id = any(${rows.map(({ endpoint_id }) => endpoint_id)}::uuid[])
        and not exists (
          select from runs r
          where r.project_id = e.project_id and r.endpoint_id = e.endpoint_id and r.parked
            and r.state in ('pending', 'retrying'))`.execute(trx);
  });
}

/** Has the open runs of a cron job or of a webhook go where it now points. */
export async function redirectRuns(
  trx: Db,
  projectId: string,
  owner: { readonly cronId: string } | { readonly webhookId: string },
  url: string,
): Promise<void> {
  const owned =
    "cronId" in owner
      ? sql`cron_id = ${owner.cronId}`
      : sql`callback_id in (select callback_id from callbacks where project_id = ${projectId} and webhook_id = ${owner.webhookId})`;
  await sql`
    update runs set endpoint_id = carillon_endpoint_id(${url}), parked = false
    where project_id = ${projectId} and ${owned} and state in ('pending', 'retrying')`.execute(trx);
}
