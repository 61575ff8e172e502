import { type RawBuilder, sql } from "kysely";
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
  /** It was found beyond the others, so that it is in nobody's way. */
  readonly beyond: boolean;
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

/** A place in the order of what is due. */
export interface DuePlace {
  /** As the database writes it: to the microsecond. */
  readonly runAt: string;
  readonly runId: string;
}

/** What a node looks for. */
export interface DueQuery {
  /** Most runs of those that are not parked, and as many of those beyond. */
  readonly limit: number;
  /** Most runs of those that are parked. */
  readonly parkedLimit: number;
  /** Endpoints that take no more: what is parked for them, and what lies beyond, is passed over. */
  readonly full?: readonly ProjectEndpoint[];
  /** Looks at so many runs that are due behind this place as well, for those of other endpoints than the first ones'. */
  readonly beyond?: { readonly after: DuePlace; readonly reads: number } | undefined;
}

/** What a node finds due. */
export interface DueRuns {
  /** The longest due first. */
  readonly runs: readonly DueRun[];
  /** There may be more that are not parked. */
  readonly more: boolean;
  /** Where a look beyond these is to go on; undefined when there is nothing more behind. */
  readonly next: DuePlace | undefined;
  /** Endpoints that nothing is parked for any more. */
  readonly emptied: readonly ProjectEndpoint[];
}

/** Most endpoints whose parked runs are looked at, by chance if there are more. */
const MAX_PARKED_ENDPOINTS = 200;
/** Parked runs of each endpoint that are looked at, when there are many endpoints. */
const MIN_PARKED_RUNS = 8;

/** Most runs of one endpoint that a look beyond the first ones answers with. */
const BEYOND_EACH = 8;

const IS_DUE = sql`r.state in ('pending', 'retrying') and not r.waiting and not r.parked and r.kind <> 'push'
        and r.run_at <= carillon_now()`;

/**
 * Runs whose time has come: the first of those that are not parked, some of those that are and whose endpoints are ready, and,
 * where that is asked for, some of other endpoints beyond. Those of pushes are leased elsewhere.
 */
export async function dueRuns(db: Db, query: DueQuery): Promise<DueRuns> {
  const { limit, parkedLimit, full = [], beyond } = query;
  const columns = sql`r.project_id, r.endpoint_id, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at`;
  const look = beyond && lookBeyond(beyond, limit, full);
  const { rows } = await sql<DueRow>`
    with ready as materialized (
      select project_id, endpoint_id from endpoints e
      where e.parked_since is not null and e.state <> 'disabled' and e.ready_at <= carillon_now()
        and ${isRoomy(sql`e`, full)}
      order by random() limit ${MAX_PARKED_ENDPOINTS}),
    first as materialized (
      select ${columns} from runs r where ${IS_DUE} order by r.run_at, r.run_id limit ${limit})${look?.steps ?? sql``},
    due as (
      select false as parked, false as beyond, false as is_end, ${columns} from first r
      union all
      select true, false, false, ready.project_id, ready.endpoint_id, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at
      from ready left join lateral (
        select * from runs r
        where r.project_id = ready.project_id and r.endpoint_id = ready.endpoint_id and r.parked
          and r.state in ('pending', 'retrying')
        order by r.run_at
        limit greatest(${MIN_PARKED_RUNS}, ${parkedLimit} / (select count(*) from ready))) r on true${look?.found(columns) ?? sql``})
    select due.project_id, due.endpoint_id, due.parked, due.beyond, due.is_end, due.run_id, due.run_at::text, due.cron_id, due.task_id,
      due.attempt = 0 and due.start_by <= carillon_now() as too_late, e.guarded,
      e.state = 'disabled' or e.ready_at > carillon_now() as blocked
    from due
    -- One look into the key for each run: joined, the table would be read as a whole where the planner expects many runs.
    left join lateral (
      select guarded, state, ready_at from endpoints
      where project_id = due.project_id and endpoint_id = due.endpoint_id limit 1) e on true
    order by due.run_at, due.run_id, due.beyond`.execute(db);
  const runs = new Map<string, DueRun>();
  // What lay beyond may have come to the front since the look before.
  for (const row of rows) {
    if (row.run_id !== null && !row.is_end && !runs.has(row.run_id)) runs.set(row.run_id, dueRun(row, row.run_id));
  }
  const first = rows.filter(({ parked, beyond: isBeyond }) => !parked && !isBeyond);
  const more = first.length >= limit;
  return {
    runs: [...runs.values()],
    more,
    next: beyond === undefined ? (more ? placeOf(first.at(-1)) : undefined) : nextBeyond(rows, limit),
    emptied: rows
      .filter(({ run_id: runId }) => runId === null)
      .map(({ project_id, endpoint_id }) => ({ projectId: project_id, endpointId: endpoint_id })),
  };
}

/** The parts of a look beyond: what is read, and what of it is found, with the last one that is read as the end. */
function lookBeyond(
  { after, reads }: NonNullable<DueQuery["beyond"]>,
  limit: number,
  full: readonly ProjectEndpoint[],
) {
  return {
    steps: sql`,
    seen as materialized (
      select r.ctid as place, row_number() over (order by r.run_at, r.run_id) as nth, r.project_id, r.endpoint_id from runs r
      where ${IS_DUE} and (r.run_at, r.run_id) > (${after.runAt}::timestamptz, ${after.runId}::uuid)
      order by r.run_at, r.run_id limit ${reads}),
    others as (
      (select place, nth, false as is_end from (
         select *, row_number() over (partition by project_id, endpoint_id order by nth) as of_endpoint from seen
         -- Not in, which looks them up by hash, where not exists compares each with each while few are expected.
         where ${isRoomy(sql`seen`, full)} and (project_id, endpoint_id) not in (
           select project_id, endpoint_id from first where endpoint_id is not null)) w
       where of_endpoint <= ${BEYOND_EACH} order by nth limit ${limit})
      union all select place, nth, true from seen where nth = ${reads})`,
    found: (columns: RawBuilder<unknown>) => sql`
      union all
      select false, true, others.is_end, ${columns}
      from others cross join lateral (select * from runs where ctid = others.place limit 1) r`,
  };
}

/** Where a look that went beyond is to go on. */
function nextBeyond(rows: readonly DueRow[], limit: number): DuePlace | undefined {
  const others = rows.filter(({ beyond, is_end: isEnd }) => beyond && !isEnd);
  if (others.length >= limit) return placeOf(others.at(-1));
  return placeOf(rows.find(({ is_end: isEnd }) => isEnd));
}

function placeOf(row: DueRow | undefined): DuePlace | undefined {
  if (row === undefined || row.run_at === null || row.run_id === null) return undefined;
  return { runAt: row.run_at, runId: row.run_id };
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
         where e.parked_since is not null and e.state <> 'disabled' and ${isRoomy(sql`e`, full)})
      ) - carillon_now())::float8 * 1000 as ms`.execute(db);
  const ms = rows[0]?.ms ?? undefined;
  return ms === undefined ? undefined : Math.max(0, Math.ceil(ms));
}

/** Whether the endpoint of a row is not among the full ones. */
function isRoomy(row: RawBuilder<unknown>, full: readonly ProjectEndpoint[]): RawBuilder<boolean> {
  if (full.length === 0) return sql`true`;
  const projects = full.map(({ projectId }) => projectId);
  const endpoints = full.map(({ endpointId }) => endpointId);
  return sql`(${row}.project_id, ${row}.endpoint_id) not in (
        select * from unnest(${projects}::uuid[], ${endpoints}::uuid[]))`;
}

/** Of an endpoint that nothing is parked for only the endpoint. */
interface DueRow {
  readonly project_id: string;
  readonly endpoint_id: string;
  readonly parked: boolean;
  readonly beyond: boolean;
  readonly is_end: boolean;
  readonly run_id: string | null;
  readonly run_at: string | null;
  readonly cron_id: string | null;
  readonly task_id: string | null;
  readonly too_late: boolean | null;
  readonly guarded: boolean | null;
  readonly blocked: boolean | null;
}

function dueRun(row: DueRow, runId: string): DueRun {
  return {
    projectId: row.project_id,
    runId,
    cronId: row.cron_id,
    taskId: row.task_id,
    endpointId: row.endpoint_id,
    tooLate: row.too_late ?? false,
    parked: row.parked,
    beyond: row.beyond,
    guarded: row.guarded ?? false,
    blocked: row.blocked ?? false,
  };
}
