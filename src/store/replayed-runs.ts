import { type Insertable, sql } from "kysely";
import type { Database, Db, RunRow } from "../db/schema.ts";
import { pushRequest } from "../domain/push-request.ts";

/** A run made once more, or why it could not be. */
export type ReplayedRun =
  | { readonly run: RunRow; readonly refusal?: undefined }
  | { readonly run?: undefined; readonly refusal: string };

/**
 * Makes a run that is over once more, now, as a run of its own that remembers the first. Whatever it was for must still be
 * there.
 */
export async function replayRun(trx: Db, projectId: string, runId: string): Promise<ReplayedRun> {
  const run = await trx
    .selectFrom("runs")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("run_id", "=", runId)
    .executeTakeFirst();
  if (run === undefined) return { refusal: "the run is gone" };
  if (["pending", "running", "retrying"].includes(run.state)) return { refusal: "the run is not over" };
  switch (run.kind) {
    case "cron":
      return replayCron(trx, run);
    case "task":
      return replayTask(trx, run);
    case "callback":
      return replayCallback(trx, run);
    case "push":
      return replayPush(trx, run);
  }
}

async function replayCron(trx: Db, run: RunRow): Promise<ReplayedRun> {
  const job = await trx
    .selectFrom("cron_jobs")
    .select(["state", "queue"])
    .where("project_id", "=", run.project_id)
    .where("cron_id", "=", run.cron_id)
    .forShare()
    .executeTakeFirst();
  if (job === undefined || job.state === "deleted") return { refusal: "the cron job was deleted" };
  if (job.queue !== null) return { refusal: "the cron job publishes to a queue now" };
  return insertReplay(trx, run, { kind: "cron", cron_id: run.cron_id });
}

async function replayTask(trx: Db, run: RunRow): Promise<ReplayedRun> {
  // A task is live while one of its runs is.
  const { numUpdatedRows } = await trx
    .updateTable("tasks")
    .set({ state: "scheduled", debounce_key: null, updated_at: sql<Date>`carillon_now()` })
    .where("project_id", "=", run.project_id)
    .where("task_id", "=", run.task_id)
    .where("state", "not in", ["scheduled", "running", "retrying"])
    .executeTakeFirst();
  if (numUpdatedRows === 0n) return { refusal: "another run of the task is not over" };
  return insertReplay(trx, run, { kind: "task", task_id: run.task_id });
}

async function replayCallback(trx: Db, run: RunRow): Promise<ReplayedRun> {
  const callback = await trx
    .selectFrom("callbacks")
    .select(["webhook_id"])
    .where("project_id", "=", run.project_id)
    .where("callback_id", "=", run.callback_id)
    .forShare()
    .executeTakeFirst();
  if (callback === undefined) return { refusal: "the event is gone" };
  if (callback.webhook_id !== null) {
    const webhook = await trx
      .selectFrom("event_webhooks")
      .select("enabled")
      .where("project_id", "=", run.project_id)
      .where("webhook_id", "=", callback.webhook_id)
      .forShare()
      .executeTakeFirst();
    if (webhook?.enabled !== true) return { refusal: "the webhook was deleted or disabled" };
  }
  return insertReplay(trx, run, { kind: "callback", callback_id: run.callback_id, message_id: run.message_id });
}

/**
 * A push goes once more as a callback with a copy of the message. Whatever holds it, the queue or where its dead letters are
 * kept, still does afterwards.
 */
async function replayPush(trx: Db, run: RunRow): Promise<ReplayedRun> {
  const subscription = await trx
    .selectFrom("push_subscriptions as s")
    .innerJoin("queues as q", (join) =>
      join.onRef("q.project_id", "=", "s.project_id").onRef("q.queue_id", "=", "s.queue_id"),
    )
    .select(["s.subscription_id", "s.url", "s.body", "s.batch_size", "s.headers", "s.dead_letter_queue_id"])
    .select(["q.name as queue", "q.queue_id", "q.graveyard_id", "q.push_lane_id", "q.dead_letter_queue_id as of_queue"])
    .where("s.project_id", "=", run.project_id)
    .where("s.subscription_id", "=", run.subscription_id)
    .executeTakeFirst();
  if (subscription === undefined) return { refusal: "the subscription was deleted" };
  if (run.message_id === null) return { refusal: "it was a test" };
  const { queue_id, graveyard_id, push_lane_id, of_queue, dead_letter_queue_id } = subscription;
  const lanes = [queue_id, graveyard_id, push_lane_id, of_queue, dead_letter_queue_id].filter((lane) => lane !== null);
  const message = await trx
    .selectFrom("messages as m")
    .innerJoin("message_bodies as b", (join) =>
      join
        .onRef("b.project_id", "=", "m.project_id")
        .onRef("b.queue_id", "=", "m.queue_id")
        .onRef("b.message_id", "=", "m.message_id"),
    )
    .select(["m.message_id", "m.group_id", "m.published_at", "b.payload", "b.content_type", "b.headers"])
    .where("m.project_id", "=", run.project_id)
    .where("m.queue_id", "in", lanes)
    .where("m.message_id", "=", run.message_id)
    .limit(1)
    .executeTakeFirst();
  if (message === undefined) return { refusal: "neither the queue nor its dead letters hold the message any more" };
  const request = pushRequest(subscription, [{ ...message, run_id: run.run_id, attempt: 1 }]);
  const { callback_id } = await trx
    .insertInto("callbacks")
    .values({
      project_id: run.project_id,
      url: subscription.url,
      body: Buffer.from(request.body),
      content_type: request.contentType,
      headers: JSON.stringify(request.headers),
      subscription_id: run.subscription_id,
    })
    .returning("callback_id")
    .executeTakeFirstOrThrow();
  return insertReplay(trx, run, { kind: "callback", callback_id, message_id: run.message_id });
}

/** A replay is started by somebody, as a manual run is; what it replays tells the two apart. */
async function insertReplay(
  trx: Db,
  run: RunRow,
  of: Pick<Insertable<Database["runs"]>, "kind" | "cron_id" | "task_id" | "callback_id" | "message_id">,
): Promise<ReplayedRun> {
  const replay = await trx
    .insertInto("runs")
    .values({
      project_id: run.project_id,
      ...of,
      state: "pending",
      trigger: "manual",
      fire_at: sql<Date>`carillon_now()`,
      run_at: sql<Date>`carillon_now()`,
      replay_of: run.replay_of ?? run.run_id,
    })
    .returningAll()
    .executeTakeFirstOrThrow();
  return { run: replay };
}
