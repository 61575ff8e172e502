import { sql } from "kysely";
import type { Db } from "../db/schema.ts";

/** What workers are there for, and whether any of it is due. */
export interface DueWork {
  readonly crons: boolean;
  readonly runs: boolean;
  readonly redrives: boolean;
  readonly replays: boolean;
  readonly backfills: boolean;
  /** Whether there are push subscriptions at all: whether they have messages takes a look at each of their queues. */
  readonly pushes: boolean;
}

/** The soonest instants at which something is due, those that have come included; undefined where nothing is to come. */
export interface WorkAhead {
  readonly now: Date;
  /** Of cron jobs: fires, and ends of the time in which a run may start, or has to have done. */
  readonly crons: Date | undefined;
  /** Of runs and of endpoints that runs wait for. */
  readonly runs: Date | undefined;
  /** Of leases of runs under way. */
  readonly leases: Date | undefined;
  readonly redrives: Date | undefined;
  readonly replays: Date | undefined;
  readonly backfills: Date | undefined;
  /** Of messages with push subscriptions, and only after now: whether one can be pushed takes a closer look. */
  readonly pushes: Date | undefined;
  /** Whether there are push subscriptions at all. */
  readonly isPushing: boolean;
}

/** Looks for when what is due next, for all workers in one statement. */
export async function lookAhead(db: Db): Promise<WorkAhead> {
  type Instants = Omit<WorkAhead, "now" | "isPushing">;
  const { rows } = await sql<{ [Name in keyof Instants]: Date | null } & { now: Date; is_pushing: boolean }>`
    select carillon_now() as now,
      least((select min(next_run_at) from cron_jobs where state = 'active'),
            (select min(start_by) from runs where start_by is not null and state = 'pending' and attempt = 0),
            (select min(due_at) from cron_watches)) as crons,
      least((select min(run_at) from runs
             where state in ('pending', 'retrying') and not waiting and not parked and kind <> 'push'),
            (select min(ready_at) from endpoints
             where parked_since is not null and state <> 'disabled' and ready_at < 'infinity')) as runs,
      (select min(lease_expires_at) from runs where state = 'running' and kind <> 'push') as leases,
      (select min(next_step_at) from redrives where state = 'running') as redrives,
      (select min(next_step_at) from replays where state = 'running') as replays,
      (select min(next_step_at) from backfills where state = 'running') as backfills,
      (select min(least(
          (select min(d.due_at) from push_deliveries d
           where d.project_id = s.project_id and d.subscription_id = s.subscription_id and d.due_at > carillon_now()),
          (select min(m.visible_at) from messages m
           where m.project_id = s.project_id and m.queue_id = s.queue_id and m.lease_expires_at is null
             and m.visible_at > m.published_at and m.visible_at > carillon_now()),
          (select min(g.ready_at) from message_groups g
           where g.project_id = s.project_id and g.queue_id = s.queue_id and not g.ready
             and g.ready_at > carillon_now()),
          (select e.ready_at from endpoints e
           where e.project_id = s.project_id and e.endpoint_id = carillon_endpoint_id(s.url) and e.guarded
             and e.ready_at > carillon_now() and e.ready_at < 'infinity')))
       from push_subscriptions s where not s.paused) as pushes,
      exists (select from push_subscriptions where not paused) as is_pushing`.execute(db);
  const row = rows[0];
  if (row === undefined) throw new Error("the database told no time");
  return {
    now: row.now,
    crons: row.crons ?? undefined,
    runs: row.runs ?? undefined,
    leases: row.leases ?? undefined,
    redrives: row.redrives ?? undefined,
    replays: row.replays ?? undefined,
    backfills: row.backfills ?? undefined,
    pushes: row.pushes ?? undefined,
    isPushing: row.is_pushing,
  };
}

/** The soonest instant after now at which something is due. */
export function nextInstant(ahead: WorkAhead): Date | undefined {
  const { crons, runs, leases, redrives, replays, backfills, pushes } = ahead;
  const instants = [crons, runs, leases, redrives, replays, backfills, pushes].flatMap((at) => at ?? []);
  return instants.filter((at) => at > ahead.now).reduce<Date | undefined>(earlier, undefined);
}

function earlier(one: Date | undefined, other: Date): Date {
  return one === undefined || other < one ? other : one;
}

/** Looks for what is due, for all workers in one statement, by one look into an index each. */
export async function lookForDueWork(db: Db): Promise<DueWork> {
  const { rows } = await sql<DueWork>`
    select
      coalesce((select true from cron_jobs
                where state = 'active' and next_run_at <= carillon_now() order by next_run_at limit 1),
               (select true from runs
                where start_by <= carillon_now() and start_by is not null and state = 'pending' and attempt = 0
                order by start_by limit 1),
               (select true from cron_watches where due_at <= carillon_now() order by due_at limit 1), false) as crons,
      coalesce((select true from runs
                where state in ('pending', 'retrying') and not waiting and not parked and kind <> 'push'
                  and run_at <= carillon_now() order by run_at limit 1),
               (select true from endpoints
                where parked_since is not null and state <> 'disabled' and ready_at <= carillon_now()
                order by ready_at limit 1), false) as runs,
      coalesce((select true from redrives
                where state = 'running' and next_step_at <= carillon_now() order by next_step_at limit 1), false) as redrives,
      coalesce((select true from replays
                where state = 'running' and next_step_at <= carillon_now() order by next_step_at limit 1), false) as replays,
      coalesce((select true from backfills
                where state = 'running' and next_step_at <= carillon_now() order by next_step_at limit 1), false) as backfills,
      coalesce((select true from push_subscriptions where not paused limit 1), false) as pushes`.execute(db);
  return rows[0] ?? { crons: false, runs: false, redrives: false, replays: false, backfills: false, pushes: false };
}
