import { type Insertable, sql, type Updateable } from "kysely";
import type { Database, Db, EventWebhookRow } from "../db/schema.ts";
import { endpointOf } from "../domain/endpoint.ts";
import { type EventType, eventBody } from "../domain/events.ts";
import { cancelCallbacks, insertCallbacks } from "./callbacks.ts";
import { enableEndpoint, lockEndpoint } from "./endpoints.ts";
import { redirectRuns } from "./runs-parking.ts";
import { admitTest } from "./test-limit.ts";

/** Most event webhooks of a project: each is one more request for every event. */
export const MAX_EVENT_WEBHOOKS = 50;

export type NewEventWebhook = Omit<Insertable<Database["event_webhooks"]>, "webhook_id" | "created_at" | "updated_at">;
export type EventWebhookChanges = Omit<Updateable<Database["event_webhooks"]>, "project_id" | "webhook_id">;

/** Creates a webhook; undefined when the project has as many as it may. */
export async function insertEventWebhook(trx: Db, webhook: NewEventWebhook): Promise<EventWebhookRow | undefined> {
  // One after the other within a project, so that the count holds.
  await sql`select from projects where project_id = ${webhook.project_id} for no key update`.execute(trx);
  const { count } = await trx
    .selectFrom("event_webhooks")
    .select(sql<number>`count(*)::int`.as("count"))
    .where("project_id", "=", webhook.project_id)
    .executeTakeFirstOrThrow();
  if (count >= MAX_EVENT_WEBHOOKS) return undefined;
  return trx.insertInto("event_webhooks").values(webhook).returningAll().executeTakeFirstOrThrow();
}

/** The project's webhook of that id, or undefined. */
export async function findEventWebhook(
  db: Db,
  projectId: string,
  webhookId: string,
): Promise<EventWebhookRow | undefined> {
  return db
    .selectFrom("event_webhooks")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("webhook_id", "=", webhookId)
    .executeTakeFirst();
}

/** Up to `limit` webhooks of a project, newest first, from the one after `before`. */
export async function listEventWebhooks(
  db: Db,
  projectId: string,
  before: string | undefined,
  limit: number,
): Promise<EventWebhookRow[]> {
  return db
    .selectFrom("event_webhooks")
    .selectAll()
    .where("project_id", "=", projectId)
    .$if(before !== undefined, (query) => query.where("webhook_id", "<", before ?? ""))
    .orderBy("webhook_id", "desc")
    .limit(limit)
    .execute();
}

/** Writes the changes and returns the webhook as it is then; undefined when there is none. */
export async function updateEventWebhook(
  trx: Db,
  projectId: string,
  webhookId: string,
  changes: EventWebhookChanges,
): Promise<EventWebhookRow | undefined> {
  const updated = await trx
    .updateTable("event_webhooks")
    .set({ ...changes, updated_at: sql<Date>`carillon_now()` })
    .where("project_id", "=", projectId)
    .where("webhook_id", "=", webhookId)
    .returningAll()
    .executeTakeFirst();
  if (updated !== undefined && changes.url !== undefined) {
    await redirectRuns(trx, projectId, { webhookId }, updated.url);
  }
  if (updated !== undefined && changes.enabled === true) {
    // A receiver that wanted no more has disabled both; whoever enables the webhook wants it to be told.
    const locked = await lockEndpoint(trx, projectId, endpointOf(updated.url).endpointId);
    if (locked?.endpoint.state === "disabled") await enableEndpoint(trx, locked.endpoint, locked.nowMs);
  }
  if (updated !== undefined && changes.enabled === false) {
    await cancelCallbacks(trx, projectId, webhookId, "the webhook was disabled");
  }
  return updated;
}

/** Disables the webhook that a run delivers to, because it answered that it wants no more. */
export async function disableWebhookOf(trx: Db, projectId: string, runId: string): Promise<void> {
  const callback = await trx
    .selectFrom("callbacks as b")
    .innerJoin("runs as r", (join) =>
      join.onRef("r.project_id", "=", "b.project_id").onRef("r.callback_id", "=", "b.callback_id"),
    )
    .select("b.webhook_id")
    .where("r.project_id", "=", projectId)
    .where("r.run_id", "=", runId)
    .executeTakeFirst();
  if (!callback?.webhook_id) return;
  const changes = { enabled: false, disabled_reason: "the receiver asked for no more requests" };
  await updateEventWebhook(trx, projectId, callback.webhook_id, changes);
}

/** Deletes a webhook, with what is on its way to it; false when there was none. */
export async function deleteEventWebhook(trx: Db, projectId: string, webhookId: string): Promise<boolean> {
  const deleted = await trx
    .deleteFrom("event_webhooks")
    .where("project_id", "=", projectId)
    .where("webhook_id", "=", webhookId)
    .returning("webhook_id")
    .executeTakeFirst();
  if (deleted !== undefined) await cancelCallbacks(trx, projectId, webhookId, "the webhook was deleted");
  return deleted !== undefined;
}

/**
 * Puts a test event on its way to a webhook, whatever it subscribes to, and returns the id of the run that sends it.
 *
 * @throws Refusal TOO_MANY_TESTS
 */
export async function sendTestEvent(trx: Db, { project_id, webhook_id, url }: EventWebhookRow): Promise<string> {
  await admitTest(trx, project_id);
  const type: EventType = "webhook.test";
  const { rows } = await sql<{ now: Date }>`select carillon_now() as now`.execute(trx);
  const body = eventBody(type, rows[0]?.now ?? new Date(0), {});
  const callback = { webhookId: webhook_id, url, body, signerId: null };
  const [runId] = await insertCallbacks(trx, project_id, [callback], "test");
  if (runId === undefined) throw new Error("an event without a run");
  return runId;
}
