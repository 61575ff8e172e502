import { type Kysely, sql } from "kysely";

/** Labels of tasks, by which they are found; and tasks that expire whatever their endpoint does. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  `alter table tasks add labels jsonb not null default '{}'`,

  // The same labels, a row each, so that the tasks of a label stand in the order of lists.
  `create table task_labels (
     project_id uuid not null,
     name text not null,
     value text not null,
     task_id uuid not null,
     primary key (project_id, name, value, task_id)
   )`,
  `create index tasks_state_idx on tasks (project_id, state, task_id)`,

  // Labels go with their task, whatever deletes it.
  `create function carillon_forget_labels() returns trigger language plpgsql as $$
   begin
     delete from task_labels l using gone g, jsonb_each_text(g.labels) as e (name, value)
     where l.project_id = g.project_id and l.name = e.name and l.value = e.value and l.task_id = g.task_id;
     return null;
   end $$`,
  `create trigger forget_labels after delete on tasks referencing old table as gone
     for each statement execute function carillon_forget_labels()`,

  // One second more than the grace, which is counted in whole seconds.
  `update runs r set start_by = r.fire_at + make_interval(secs => t.grace_seconds::float8 + 1)
     from tasks t
     where t.project_id = r.project_id and t.task_id = r.task_id and t.grace_seconds is not null
       and r.state = 'pending' and r.trigger <> 'manual'`,
];
