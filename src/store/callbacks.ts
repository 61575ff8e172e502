import type { Insertable } from "kysely";
import { sql } from "kysely";
import type { Database, Db } from "../db/schema.ts";

/** Stores a failure event, with the run that delivers it: the engine of all runs sends it, with retries of its own. */
export async function insertCallback(
  trx: Db,
  callback: Omit<Insertable<Database["callbacks"]>, "callback_id">,
): Promise<void> {
  const { callback_id } = await trx
    .insertInto("callbacks")
    .values(callback)
    .returning("callback_id")
    .executeTakeFirstOrThrow();
  await trx
    .insertInto("runs")
    .values({
      project_id: callback.project_id,
      kind: "callback",
      callback_id,
      state: "pending",
      trigger: "message",
      fire_at: sql<Date>`carillon_now()`,
      run_at: sql<Date>`carillon_now()`,
    })
    .execute();
}
