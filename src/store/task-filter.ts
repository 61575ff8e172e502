import { type RawBuilder, sql } from "kysely";
import type { Db, TaskState } from "../db/schema.ts";
import { Refusal } from "../errors.ts";

/** Tasks that one statement of a count looks at. */
const COUNT_WALK = 20_000;

/** Which tasks are meant: those that meet all that is given. */
export interface TaskFilter {
  /** In one of these states. */
  readonly states?: readonly TaskState[] | undefined;
  /** With all of these labels, by name. */
  readonly labels?: Readonly<Record<string, string>> | undefined;
  /** To run at this instant or later. */
  readonly since?: Date | undefined;
  /** To run before this instant. */
  readonly until?: Date | undefined;
}

/** How far one walk goes. */
export interface WalkBounds {
  /** Most tasks that it finds. */
  readonly find: number;
  /** Most tasks that it looks at, where not all that lie on its way are meant. */
  readonly look: number;
}

/** What a walk through tasks has found. */
export interface TaskWalk {
  /** Newest first. */
  readonly taskIds: readonly string[];
  /** The task that the walk has come to. Undefined: nothing is left. */
  readonly next: string | undefined;
}

/** Finds the project's tasks that meet the filter and were created before the task `before`, newest first. */
export async function walkTasks(
  db: Db,
  projectId: string,
  filter: TaskFilter,
  before: string | undefined,
  { find, look }: WalkBounds,
): Promise<TaskWalk> {
  // One more than wanted tells whether there are more.
  const walked = isExact(filter) ? find + 1 : look;
  const { rows } = await sql<{ task_id: string | null; walked: number; walked_id: string }>`
    with walk as materialized (${walkOf(projectId, filter, before, walked)}),
    edge as (select (count(*) over ())::int as walked, task_id as walked_id from walk order by task_id limit 1)
    select edge.*, found.task_id from edge left join (
      select t.task_id from tasks t where ${isOnTheWay(projectId)} and ${isWanted(filter)}
      order by t.task_id desc limit ${find + 1}
    ) found on true order by found.task_id desc`.execute(db);
  const taskIds = rows.flatMap(({ task_id }) => task_id ?? []);
  if (taskIds.length > find) return { taskIds: taskIds.slice(0, find), next: taskIds[find - 1] };
  const [edge] = rows;
  return { taskIds, next: edge !== undefined && edge.walked >= walked ? edge.walked_id : undefined };
}

/**
 * How many of the project's tasks meet the filter, of those that were created before the task `before`.
 *
 * @throws Refusal TASKS_TOO_MANY when `within` is aborted before they are counted
 */
export async function countTasks(
  db: Db,
  projectId: string,
  filter: TaskFilter,
  before: string | undefined,
  within: AbortSignal,
): Promise<number> {
  let count = 0;
  for (let from = before; ; ) {
    if (within.aborted) throw new Refusal("TASKS_TOO_MANY");
    const { rows } = await sql<{ count: number; walked: number; walked_id: string | null }>`
      with walk as materialized (${walkOf(projectId, filter, from, COUNT_WALK)})
      select (select count(*)::int from walk) as walked, (select task_id from walk order by task_id limit 1) as walked_id,
        (select count(*)::int from tasks t where ${isOnTheWay(projectId)} and ${isWanted(filter)}) as count`.execute(
      db,
    );
    const [step] = rows;
    count += step?.count ?? 0;
    if (step === undefined || step.walked_id === null || step.walked < COUNT_WALK) return count;
    from = step.walked_id;
  }
}

/** Those of the tasks that meet the filter, locked in the order of their ids until the transaction ends. */
export async function lockWanted(
  trx: Db,
  projectId: string,
  filter: TaskFilter,
  taskIds: readonly string[],
): Promise<string[]> {
  const { rows } = await sql<{ task_id: string }>`
    select task_id from tasks t
    where project_id = ${projectId} and task_id = any(${taskIds}::uuid[]) and ${isWanted(filter)}
    order by task_id for no key update`.execute(trx);
  return rows.map(({ task_id }) => task_id);
}

/** Whether every task on the way is meant. */
function isExact({ states, labels = {}, since, until }: TaskFilter): boolean {
  if (since !== undefined || until !== undefined) return false;
  const count = Object.keys(labels).length;
  return count === 0 || (count === 1 && states === undefined);
}

/** The tasks on the way, by an index that has them in order: of a label, of the states, or all. */
function walkOf(
  projectId: string,
  { states, labels = {} }: TaskFilter,
  before: string | undefined,
  limit: number,
): RawBuilder<unknown> {
  const below = before === undefined ? sql`` : sql`and task_id < ${before}::uuid`;
  const [label] = Object.entries(labels);
  if (label !== undefined) {
    const [name, value] = label;
    return sql`
      select task_id from task_labels
      where project_id = ${projectId} and name = ${name} and value = ${value} ${below}
      order by task_id desc limit ${limit}`;
  }
  if (states !== undefined) {
    return sql`
      select of_state.task_id from unnest(${states}::text[]) as wanted (state) cross join lateral (
        select task_id from tasks where project_id = ${projectId} and state = wanted.state ${below}
        order by task_id desc limit ${limit}) of_state
      order by of_state.task_id desc limit ${limit}`;
  }
  return sql`select task_id from tasks where project_id = ${projectId} ${below} order by task_id desc limit ${limit}`;
}

/** By a list of ids, so that no plan reads more of the project's tasks than these. */
function isOnTheWay(projectId: string): RawBuilder<boolean> {
  return sql`t.project_id = ${projectId} and t.task_id = any(array(select task_id from walk))`;
}

function isWanted({ states, labels, since, until }: TaskFilter): RawBuilder<boolean> {
  const also = (value: unknown, condition: () => RawBuilder<unknown>) => (value === undefined ? sql`` : condition());
  return sql`true
    ${also(states, () => sql`and t.state = any(${states}::text[])`)}
    ${also(labels, () => sql`and t.labels @> ${JSON.stringify(labels)}::jsonb`)}
    ${also(since, () => sql`and t.run_at >= ${since}::timestamptz`)}
    ${also(until, () => sql`and t.run_at < ${until}::timestamptz`)}`;
}
