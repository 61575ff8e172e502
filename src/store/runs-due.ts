import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import type { RunKey } from "./runs.ts";

/** A run that may be leased. */
export interface DueRun extends RunKey {
  readonly cronId: string | null;
  readonly taskId: string | null;
  readonly endpointId: string;
  /** It must not start any more. */
  readonly tooLate: boolean;
  /** It is set apart with its endpoint already. */
  readonly parked: boolean;
  /** Its endpoint admits requests one batch at a time. */
  readonly guarded: boolean;
  /** Its endpoint takes nothing now. */
  readonly blocked: boolean;
}

/** An endpoint of a project. */
export interface ProjectEndpoint {
  readonly projectId: string;
  readonly endpointId: string;
}

/** What a node finds due. */
export interface DueRuns {
  /** The longest due first. */
  readonly runs: readonly DueRun[];
  /** There may be more that are not parked. */
  readonly more: boolean;
  /** Endpoints that nothing is parked for any more. */
  readonly emptied: readonly ProjectEndpoint[];
}

/** Most endpoints whose parked runs are looked at, by chance if there are more. */
const MAX_PARKED_ENDPOINTS = 200;
/** Parked runs of each endpoint that are looked at, when there are many endpoints. */
const MIN_PARKED_RUNS = 8;

/**
 * Runs whose time has come: up to `limit` of those that are not parked, and up to `parkedLimit` of those that are, of
 * endpoints that are ready and not among `full`. Those of pushes are leased elsewhere.
 */
export async function dueRuns(
  db: Db,
  limit: number,
  parkedLimit: number,
  full: readonly ProjectEndpoint[],
): Promise<DueRuns> {
  const { rows } = await sql<{
    project_id: string;
    endpoint_id: string;
    parked: boolean;
    run_id: string | null;
    cron_id: string | null;
    task_id: string | null;
    too_late: boolean | null;
    guarded: boolean | null;
    blocked: boolean | null;
  }>`
    with ready as materialized (
      select project_id, endpoint_id from endpoints e
      where e.parked_since is not null and e.state <> 'disabled' and e.ready_at <= carillon_now() ${except(full)}
      order by random() limit ${MAX_PARKED_ENDPOINTS}),
    due as (
      (select r.project_id, r.endpoint_id, false as parked, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at
       from runs r
       where r.state in ('pending', 'retrying') and not r.waiting and not r.parked and r.kind <> 'push'
         and r.run_at <= carillon_now()
       order by r.run_at limit ${limit})
      union all
      select ready.project_id, ready.endpoint_id, true, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at
      from ready left join lateral (
        select * from runs r
        where r.project_id = ready.project_id and r.endpoint_id = ready.endpoint_id and r.parked
          and r.state in ('pending', 'retrying')
        order by r.run_at
        limit greatest(${MIN_PARKED_RUNS}, ${parkedLimit} / (select count(*) from ready))) r on true)
    select due.*, due.attempt = 0 and due.start_by <= carillon_now() as too_late, e.guarded,
      e.state = 'disabled' or e.ready_at > carillon_now() as blocked
    from due
    -- One look into the key for each run: joined, the table would be read as a whole where the planner expects many runs.
    left join lateral (
      select guarded, state, ready_at from endpoints
      where project_id = due.project_id and endpoint_id = due.endpoint_id limit 1) e on true
    order by due.run_at`.execute(db);
  const runs = rows.flatMap((row) =>
    row.run_id === null
      ? []
      : {
          projectId: row.project_id,
          runId: row.run_id,
          cronId: row.cron_id,
          taskId: row.task_id,
          endpointId: row.endpoint_id,
          tooLate: row.too_late ?? false,
          parked: row.parked,
          guarded: row.guarded ?? false,
          blocked: row.blocked ?? false,
        },
  );
  return {
    runs,
    more: runs.filter(({ parked }) => !parked).length >= limit,
    emptied: rows
      .filter(({ run_id }) => run_id === null)
      .map(({ project_id, endpoint_id }) => ({ projectId: project_id, endpointId: endpoint_id })),
  };
}

/**
 * Milliseconds until the next run is due or an endpoint with parked runs that is not among `full` is ready, 0 when that
 * has come; undefined when nothing is to come.
 */
export async function msUntilNextRun(db: Db, full: readonly ProjectEndpoint[]): Promise<number | undefined> {
  const { rows } = await sql<{ ms: number | null }>`
    select extract(epoch from least(
        (select min(run_at) from runs
         where state in ('pending', 'retrying') and not waiting and not parked and kind <> 'push'),
        (select min(ready_at) from endpoints e
         where e.parked_since is not null and e.state <> 'disabled' ${except(full)})
      ) - carillon_now())::float8 * 1000 as ms`.execute(db);
  const ms = rows[0]?.ms ?? undefined;
  return ms === undefined ? undefined : Math.max(0, Math.ceil(ms));
}

function except(full: readonly ProjectEndpoint[]) {
  if (full.length === 0) return sql``;
  const projects = full.map(({ projectId }) => projectId);
  const endpoints = full.map(({ endpointId }) => endpointId);
  return sql`and (e.project_id, e.endpoint_id) not in (select * from unnest(${projects}::uuid[], ${endpoints}::uuid[]))`;
}
