import { sql } from "kysely";
import type { Db, EndpointRow } from "../db/schema.ts";
import type { EndpointControl } from "../domain/admission.ts";
import { type Breaker, CLOSED, DISABLED, type EndpointState, WINDOW_MS } from "../domain/breaker.ts";
import { rampFor } from "../domain/pace.ts";

/** Most parked runs that are counted. */
const MAX_WAITING = 100_000;
/** Days for which an endpoint is kept that is not used and has nothing that somebody set. */
const UNUSED_DAYS = 7;

/** An endpoint with what is counted of it. */
export interface EndpointView extends EndpointRow {
  readonly now: Date;
  /** Of the last five minutes. */
  readonly succeeded: number;
  readonly failed: number;
  readonly throttled: number;
  /** Attempts under way. */
  readonly in_flight: number;
  /** Runs that are parked, up to MAX_WAITING. */
  readonly waiting: number;
}

export interface EndpointFilter {
  readonly state?: EndpointState | undefined;
  readonly endpointId?: string | undefined;
}

/**
 * How many requests the runs `r` that are under way stand for. The messages of a batch have a run each, and one lease: what
 * is recorded in one transaction for one subscription goes out in one request.
 */
export const requestsUnderWay = sql<number>`
  count(distinct (coalesce(r.subscription_id, r.run_id), r.lease_expires_at))::int`;

/** Up to `limit` of the project's endpoints whose id is below `before`, in falling order of ids. */
export async function listEndpoints(
  db: Db,
  projectId: string,
  { state, endpointId }: EndpointFilter,
  before: string | undefined,
  limit: number,
): Promise<EndpointView[]> {
  const { rows } = await sql<EndpointView>`
    select e.*, carillon_now() as now, c.succeeded, c.failed, c.throttled, r.in_flight, p.waiting from (
      select * from endpoints
      where project_id = ${projectId}
        and (${state ?? null}::text is null or state = ${state ?? null})
        and (${endpointId ?? null}::uuid is null or endpoint_id = ${endpointId ?? null})
        and (${before ?? null}::uuid is null or endpoint_id < ${before ?? null})
      order by endpoint_id desc limit ${limit}) e
    cross join lateral (
      select coalesce(sum(succeeded), 0)::int as succeeded, coalesce(sum(failed), 0)::int as failed,
        coalesce(sum(throttled), 0)::int as throttled
      from endpoint_counts c
      where c.project_id = e.project_id and c.endpoint_id = e.endpoint_id
        and c.slice > carillon_now() - make_interval(secs => ${WINDOW_MS / 1_000})) c
    cross join lateral (
      select ${requestsUnderWay} as in_flight from runs r
      where r.state = 'running' and r.project_id = e.project_id and r.endpoint_id = e.endpoint_id
        and r.lease_expires_at > carillon_now()) r
    cross join lateral (
      select count(*)::int as waiting from (
        select from runs r
        where r.project_id = e.project_id and r.endpoint_id = e.endpoint_id and r.parked
          and r.state in ('pending', 'retrying')
        limit ${MAX_WAITING}) parked) p
    order by e.endpoint_id desc`.execute(db);
  return rows;
}

/** The project's endpoint of that id, or undefined. */
export async function findEndpoint(db: Db, projectId: string, endpointId: string): Promise<EndpointView | undefined> {
  return (await listEndpoints(db, projectId, { endpointId }, undefined, 1))[0];
}

/** The project's endpoint, locked against admissions and other changes, and the instant now. Undefined without one. */
export async function lockEndpoint(
  trx: Db,
  projectId: string,
  endpointId: string,
): Promise<{ readonly endpoint: EndpointRow; readonly nowMs: number } | undefined> {
  const row = await trx
    .selectFrom("endpoints")
    .selectAll()
    .select(sql<Date>`carillon_now()`.as("now"))
    .where("project_id", "=", projectId)
    .where("endpoint_id", "=", endpointId)
    .forNoKeyUpdate()
    .executeTakeFirst();
  if (row === undefined) return undefined;
  const { now, ...endpoint } = row;
  return { endpoint, nowMs: now.getTime() };
}

export interface EndpointLimits {
  readonly max_concurrency?: number | null;
  readonly max_rate?: number | null;
}

/** Changes the limits of an endpoint. */
export async function limitEndpoint(trx: Db, endpoint: EndpointRow, limits: EndpointLimits): Promise<void> {
  const now = sql<Date>`carillon_now()`;
  await trx
    .updateTable("endpoints")
    .set({ ...limits, updated_at: now, ...(isOpen(endpoint) && { ready_at: now }) })
    .where("project_id", "=", endpoint.project_id)
    .where("endpoint_id", "=", endpoint.endpoint_id)
    .execute();
}

function isOpen({ state, paused_until }: EndpointRow): boolean {
  return state === "closed" && paused_until === null;
}

/** Lets requests go to an endpoint that the caller has locked; what waits is sent at a rising rate. */
export async function enableEndpoint(trx: Db, endpoint: EndpointRow, nowMs: number): Promise<void> {
  if (endpoint.state === "closed") return;
  const backlog = await countParked(trx, endpoint);
  const change = { breaker: CLOSED, pace: rampFor(backlog, nowMs), pausedUntilMs: null };
  await writeControl(trx, endpoint, change, { reason: "enabled by a call", byCaller: true, nowMs });
}

/** Stops all requests to an endpoint that the caller has locked. */
export async function disableEndpoint(trx: Db, endpoint: EndpointRow, reason: string, nowMs: number): Promise<void> {
  if (endpoint.state === "disabled") return;
  await writeControl(trx, endpoint, { breaker: DISABLED }, { reason, byCaller: true, nowMs });
}

/** How many runs are parked for an endpoint, up to MAX_WAITING. */
export async function countParked(
  db: Db,
  { project_id, endpoint_id }: Pick<EndpointRow, "project_id" | "endpoint_id">,
): Promise<number> {
  const { rows } = await sql<{ waiting: number }>`
    select count(*)::int as waiting from (
      select from runs where project_id = ${project_id} and endpoint_id = ${endpoint_id} and parked
        and state in ('pending', 'retrying')
      limit ${MAX_WAITING}) parked`.execute(db);
  return rows[0]?.waiting ?? 0;
}

/** What decides over requests to an endpoint. */
export function controlOf(row: EndpointRow): EndpointControl {
  return {
    breaker: {
      state: row.state,
      nextProbeAtMs: row.next_probe_at?.getTime() ?? null,
      probeWaitMs: row.probe_wait_ms,
      probesSucceeded: row.probes_succeeded,
      probesFailed: row.probes_failed,
    },
    maxConcurrency: row.max_concurrency,
    maxRate: row.max_rate,
    pace:
      row.pace_rate === null || row.pace_since === null
        ? null
        : { startRate: row.pace_rate, sinceMs: row.pace_since.getTime() },
    pausedUntilMs: row.paused_until?.getTime() ?? null,
    nextSlotMs: row.next_slot_ms,
  };
}

/** How a change of control came about. */
export interface ControlChange {
  /** Why the breaker stands where it does now; undefined when it has not moved. */
  readonly reason?: string | undefined;
  /** A caller changed it. */
  readonly byCaller?: boolean;
  /** From when on something can go. Default: when the breaker and the pause say so. */
  readonly readyAtMs?: number;
  readonly toldStage?: number;
  readonly nowMs: number;
}

/** Writes what has changed of an endpoint that the caller has locked. */
export async function writeControl(
  trx: Db,
  endpoint: EndpointRow,
  changes: Partial<Omit<EndpointControl, "maxConcurrency" | "maxRate">>,
  { reason, byCaller, readyAtMs, toldStage, nowMs }: ControlChange,
): Promise<void> {
  const { breaker, pace, pausedUntilMs, nextSlotMs } = changes;
  const moved = breaker !== undefined && breaker.state !== endpoint.state;
  const after = { ...controlOf(endpoint), ...changes };
  const ready = readyAtMs ?? Math.max(nowMs, after.pausedUntilMs ?? 0, after.breaker.nextProbeAtMs ?? 0);
  await trx
    .updateTable("endpoints")
    .set({
      ...(breaker && breakerColumns(breaker)),
      ...(moved && { reason: reason ?? null, changed_at: new Date(nowMs) }),
      ...(moved && breaker.state === "closed" && { counted_since: new Date(nowMs) }),
      ...(pace !== undefined && { pace_rate: pace?.startRate ?? null, pace_since: dateOrNull(pace?.sinceMs) }),
      ...(pausedUntilMs !== undefined && { paused_until: dateOrNull(pausedUntilMs) }),
      ...(nextSlotMs !== undefined && { next_slot_ms: nextSlotMs }),
      ...(toldStage !== undefined && { told_stage: toldStage }),
      ...(byCaller && { updated_at: new Date(nowMs) }),
      ready_at: new Date(Math.ceil(ready)),
    })
    .where("project_id", "=", endpoint.project_id)
    .where("endpoint_id", "=", endpoint.endpoint_id)
    .execute();
}

function breakerColumns({ state, nextProbeAtMs, probeWaitMs, probesSucceeded, probesFailed }: Breaker) {
  return {
    state,
    next_probe_at: dateOrNull(nextProbeAtMs),
    probe_wait_ms: probeWaitMs,
    probes_succeeded: probesSucceeded,
    probes_failed: probesFailed,
  };
}

function dateOrNull(ms: number | null | undefined): Date | null {
  return ms == null ? null : new Date(ms);
}

/** Deletes up to `limit` endpoints that nothing was sent to for a week and that nobody has set anything of. */
export async function pruneEndpoints(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from endpoints where ctid = any(array(
      select ctid from endpoints
      where used_at < carillon_now() - make_interval(days => ${UNUSED_DAYS})
        and state <> 'disabled' and max_concurrency is null and max_rate is null and parked_since is null
      limit ${limit} for update skip locked))`.execute(db);
  return Number(numAffectedRows ?? 0n);
}

/** Deletes up to `limit` counts that are older than any window. */
export async function pruneEndpointCounts(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from endpoint_counts where ctid = any(array(
      select ctid from endpoint_counts
      where slice < carillon_now() - make_interval(secs => ${(2 * WINDOW_MS) / 1_000}) limit ${limit}
      for update skip locked))`.execute(db);
  return Number(numAffectedRows ?? 0n);
}
