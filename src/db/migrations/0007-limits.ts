import { type Kysely, sql } from "kysely";

/**
 * Limits that hold from the moment in which they are set: whoever sets one waits for the hand-outs that do not know of it.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const LIMITS = ["max_in_flight", "rate_limit", "rate_period_seconds", "grouped"];
const limits = (row: string) => `(${LIMITS.map((name) => `${row}.${name}`).join(", ")})`;

const STATEMENTS = [
  // Shared by hand-outs of a queue without limits that lease messages one by one; whoever sets limits has it alone. It is
  // taken before the two locks of a queue with limits, and after those of a line.
  `create function carillon_plain_lock(p_queue_id uuid) returns bigint language sql immutable parallel safe as $$
     select hashtextextended(p_queue_id::text, 4)
   $$`,

  `create function carillon_await_plain_hand_outs() returns trigger language plpgsql set lock_timeout = '3s' as $$
   begin
     perform pg_advisory_xact_lock(carillon_plain_lock(old.queue_id));
     return null;
   end $$`,
  `create function carillon_await_turn() returns trigger language plpgsql set lock_timeout = '3s' as $$
   begin
     perform pg_advisory_xact_lock(carillon_turn_lock(old.queue_id));
     return null;
   end $$`,
  // Triggers fire in the order of their names: after queues_leave_line, and before and after queues_regroup.
  `create trigger queues_limits after update on queues for each row
     when (${limits("old")} is distinct from ${limits("new")} and (new.metered or new.grouped))
     execute function carillon_await_plain_hand_outs()`,
  `create trigger queues_turn after update on queues for each row
     when (${limits("old")} is distinct from ${limits("new")} and (new.metered or new.grouped))
     execute function carillon_await_turn()`,
];
