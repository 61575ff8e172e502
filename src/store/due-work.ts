import { type RawBuilder, sql } from "kysely";
import type { Db } from "../db/schema.ts";

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

/** The same without what takes more than one look into an index each. */
export type DueWork = Omit<WorkAhead, "pushes">;

type Instants<Work> = Omit<Work, "now" | "isPushing">;

const INSTANTS: { readonly [Name in keyof Instants<DueWork>]: RawBuilder<Date | null> } = {
  crons: sql`least(
      (select min(next_run_at) from cron_jobs where state = 'active'),
      (select min(start_by) from runs where start_by is not null and state = 'pending' and attempt = 0),
      (select min(due_at) from cron_watches))`,
  runs: sql`least(
      (select min(run_at) from runs
       where state in ('pending', 'retrying') and not waiting and not parked and kind <> 'push'),
      (select min(ready_at) from endpoints
       where parked_since is not null and state <> 'disabled' and ready_at < 'infinity'))`,
  leases: sql`(select min(lease_expires_at) from runs where state = 'running' and kind <> 'push')`,
  redrives: sql`(select min(next_step_at) from redrives where state = 'running')`,
  replays: sql`(select min(next_step_at) from replays where state = 'running')`,
  backfills: sql`(select min(next_step_at) from backfills where state = 'running')`,
};

const PUSHES: RawBuilder<Date | null> = sql`(
      select min(least(
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
      from push_subscriptions s where not s.paused)`;

/** Looks for what is due, for all workers in one statement. */
export async function lookForDueWork(db: Db): Promise<DueWork> {
  return look(db, INSTANTS);
}

/** Looks for when what is due next, for all workers in one statement. */
export async function lookAhead(db: Db): Promise<WorkAhead> {
  return look(db, { ...INSTANTS, pushes: PUSHES });
}

async function look<Name extends string>(
  db: Db,
  instants: Readonly<Record<Name, RawBuilder<Date | null>>>,
): Promise<Record<Name, Date | undefined> & { readonly now: Date; readonly isPushing: boolean }> {
  const names = Object.keys(instants) as Name[];
  const { rows } = await sql<Record<Name, Date | null> & { readonly now: Date; readonly isPushing: boolean }>`
    select carillon_now() as now, exists (select from push_subscriptions where not paused) as "isPushing",
      ${sql.join(
        names.map((name) => sql`${instants[name]} as ${sql.ref(name)}`),
        sql`,\n      `,
      )}`.execute(db);
  const row = rows[0];
  if (row === undefined) throw new Error("the database told no time");
  const found = Object.fromEntries(names.map((name) => [name, row[name] ?? undefined]));
  return { now: row.now, isPushing: row.isPushing, ...(found as Record<Name, Date | undefined>) };
}

/** Whether something of that name has come due. */
export function isDue(work: DueWork, name: keyof Instants<DueWork>): boolean {
  const at = work[name];
  return at !== undefined && at <= work.now;
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
