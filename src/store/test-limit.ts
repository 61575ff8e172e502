import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import { Refusal } from "../errors.ts";

/** Test deliveries that a project may make within a minute: enough for people, too few to look around in a network. */
const TESTS_PER_MINUTE = 10;

/**
 * Lets one more test delivery be recorded in this transaction, as a run with the trigger `test`. Tests of a project take
 * turns until it ends, so that the count is exact.
 *
 * @throws Refusal TOO_MANY_TESTS
 */
export async function admitTest(trx: Db, projectId: string): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtextextended(${`push tests of ${projectId}`}, 0))`.execute(trx);
  const { rows } = await sql<{ made: number }>`
    select count(*)::int as made from (
      select created_at from runs where project_id = ${projectId} and trigger = 'test'
      order by run_id desc limit ${TESTS_PER_MINUTE}) newest
    where created_at > carillon_now() - interval '1 minute'`.execute(trx);
  if ((rows[0]?.made ?? 0) >= TESTS_PER_MINUTE) throw new Refusal("TOO_MANY_TESTS", { limit: `${TESTS_PER_MINUTE}` });
}
