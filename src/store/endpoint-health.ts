import { sql } from "kysely";
import type { Db, EndpointRow } from "../db/schema.ts";
import { WINDOW_MS } from "../domain/breaker.ts";
import { type HealthChange, type HealthNotes, judge } from "../domain/endpoint-health.ts";
import { formatId } from "../domain/ids.ts";
import { controlOf, countParked, lockEndpoint, writeControl } from "./endpoints.ts";
import { emitEvent } from "./events.ts";

/** What a node has seen of one endpoint. */
export interface NotedEndpoint {
  readonly endpointId: string;
  readonly address: string;
  readonly notes: HealthNotes;
}

/**
 * Adds what a node has seen of a project's endpoints to what is counted, in one statement for all of them, and makes those
 * endpoints that are new. Returns which of them need a judgement: those that failed or were slowed down, and those that
 * are guarded.
 *
 * @param part tells the node's counts from those of others, so that no two nodes wait for each other.
 */
export async function recordHealth(
  db: Db,
  part: string,
  projectId: string,
  noted: readonly NotedEndpoint[],
): Promise<Set<string>> {
  const records = noted.map(({ endpointId, address, notes }) => ({
    endpoint_id: endpointId,
    address,
    succeeded: notes.succeeded,
    failed: notes.failed,
    throttled: notes.throttled,
    troubled: notes.failed > 0 || notes.throttled > 0 || notes.gone !== undefined,
  }));
  const { rows } = await sql<{ endpoint_id: string }>`
    with noted as materialized (
      select * from jsonb_to_recordset(${JSON.stringify(records)}::jsonb) as n (endpoint_id uuid, address text,
        succeeded int, failed int, throttled int, troubled boolean)),
    known as materialized (
      select e.endpoint_id, e.guarded, e.told_stage, e.used_at from endpoints e
      where e.project_id = ${projectId} and e.endpoint_id = any(array(select endpoint_id from noted))),
    made as (
      insert into endpoints (project_id, endpoint_id, address)
      select ${projectId}, endpoint_id, address from noted
      where endpoint_id not in (select endpoint_id from known)
      order by endpoint_id on conflict do nothing),
    used as (
      update endpoints e set used_at = carillon_now() from known k
      where e.project_id = ${projectId} and e.endpoint_id = k.endpoint_id
        and k.used_at < carillon_now() - interval '1 hour'),
    counted as (
      insert into endpoint_counts as c (project_id, endpoint_id, slice, part, succeeded, failed, throttled)
      select ${projectId}, endpoint_id, date_bin('10 seconds', carillon_now(), 'epoch'), ${part}, succeeded, failed, throttled
      from noted
      on conflict (project_id, endpoint_id, slice, part) do update set succeeded = c.succeeded + excluded.succeeded,
        failed = c.failed + excluded.failed, throttled = c.throttled + excluded.throttled)
    select n.endpoint_id from noted n left join known k using (endpoint_id)
    where n.troubled or k.guarded or k.told_stage > 0`.execute(db);
  return new Set(rows.map(({ endpoint_id }) => endpoint_id));
}

/** What followed from a judgement. */
export interface Judgement {
  /** Something may go now that could not before, or an event is due. */
  readonly due: boolean;
}

/**
 * Judges one endpoint by all that is counted, writes what follows, and tells of it. Undefined when the endpoint is gone.
 */
export async function judgeEndpoint(
  trx: Db,
  projectId: string,
  { endpointId, notes }: NotedEndpoint,
): Promise<Judgement | undefined> {
  const locked = await lockEndpoint(trx, projectId, endpointId);
  if (locked === undefined) return undefined;
  const { endpoint, nowMs } = locked;
  const { rows } = await sql<{ succeeded: number; failed: number; recent_rate: number }>`
    select coalesce(sum(succeeded) filter (where slice >= ${endpoint.counted_since}), 0)::int as succeeded,
      coalesce(sum(failed) filter (where slice >= ${endpoint.counted_since}), 0)::int as failed,
      coalesce(sum(succeeded) filter (where slice >= since), 0)::float8
        / greatest(1, extract(epoch from carillon_now() - greatest(since, ${endpoint.created_at}::timestamptz)))::float8
        as recent_rate
    from endpoint_counts, (select date_bin('10 seconds', carillon_now(), 'epoch') - interval '10 seconds' as since) recent
    where project_id = ${projectId} and endpoint_id = ${endpointId}
      and slice > carillon_now() - make_interval(secs => ${WINDOW_MS / 1_000})
    group by since`.execute(trx);
  const { succeeded = 0, failed = 0, recent_rate: recentRate = 0 } = rows[0] ?? {};
  const control = controlOf(endpoint);
  const backlog = endpoint.parked_since === null ? 0 : await countParked(trx, endpoint);
  const context = { window: { succeeded, failed }, recentRate, backlog, toldStage: endpoint.told_stage, nowMs };
  const change = judge(control, notes, context);

  const { breaker, pace, pausedUntilMs, reason, toldStage } = change;
  const same =
    breaker === control.breaker &&
    pace === control.pace &&
    pausedUntilMs === control.pausedUntilMs &&
    toldStage === endpoint.told_stage;
  if (!same) await writeControl(trx, endpoint, { breaker, pace, pausedUntilMs }, { reason, toldStage, nowMs });
  const told = await tell(trx, endpoint, change, notes);
  return { due: told > 0 || (breaker.state === "closed" && endpoint.state !== "closed") };
}

async function tell(trx: Db, endpoint: EndpointRow, change: HealthChange, notes: HealthNotes): Promise<number> {
  let told = 0;
  for (const type of change.events) {
    told += await emitEvent(trx, endpoint.project_id, {
      type,
      data: {
        endpoint_id: formatId("ep", endpoint.endpoint_id),
        url: endpoint.address,
        state: change.breaker.state,
        reason: change.reason ?? endpoint.reason ?? undefined,
        error: notes.failure,
        ...(type === "endpoint.attempts_spent" && { percent: change.toldStage }),
      },
      aboutUrl: endpoint.address,
    });
  }
  return told;
}
