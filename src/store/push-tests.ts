import { sql } from "kysely";
import type { Db, PushSubscriptionRow } from "../db/schema.ts";
import type { Push } from "./pushes.ts";
import { admitTest } from "./test-limit.ts";

/** How much longer the record of a test is held than the attempt may take, in seconds. */
const RECORD_SECONDS = 10;

/**
 * Records a test delivery before it is made.
 *
 * @throws Refusal TOO_MANY_TESTS
 */
export async function startPushTest(
  db: Db,
  subscription: Pick<PushSubscriptionRow, "project_id" | "subscription_id" | "url">,
  timeoutSeconds: number,
): Promise<Push> {
  const { project_id: projectId, subscription_id: subscriptionId } = subscription;
  return db.transaction().execute(async (trx) => {
    await admitTest(trx, projectId);
    const { rows } = await sql<Push>`
      with run as (
        insert into runs (project_id, kind, subscription_id, state, trigger, fire_at, run_at, attempt, lease_token,
                          lease_expires_at, started_at)
        values (${projectId}, 'push', ${subscriptionId}, 'running', 'test', carillon_now(), carillon_now(), 1, gen_random_uuid(),
                carillon_now() + make_interval(secs => ${timeoutSeconds + RECORD_SECONDS}), carillon_now())
        returning run_id, attempt, fire_at, lease_token
      ),
      recorded as (
        insert into run_attempts (project_id, run_id, attempt, started_at, url)
        select ${projectId}, run_id, attempt, carillon_now(), ${subscription.url} from run
      )
      select *, carillon_now() as started_at from run`.execute(trx);
    if (rows[0] === undefined) throw new Error("an insert without a row");
    return rows[0];
  });
}
