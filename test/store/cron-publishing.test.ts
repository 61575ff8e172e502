import { create } from "@bufbuild/protobuf";
import { FieldMaskSchema } from "@bufbuild/protobuf/wkt";
import { sql } from "kysely";
import { describe, expect, test } from "vitest";
import { CronJobState, MisfirePolicy } from "../../gen/scheduling/v1/cron_service_pb.js";
import { OverlapPolicy, RunState, RunTrigger } from "../../gen/scheduling/v1/run_pb.js";
import { connect } from "../../src/db/connect.ts";
import { formatId, parseId } from "../../src/domain/ids.ts";
import { stepBackfill } from "../../src/store/backfills.ts";
import { publishMessages } from "../../src/store/messages.ts";
import { deleteQueue } from "../../src/store/queues.ts";
import { makeQueue } from "../support/queues.ts";
import { createJob, getJob, type RunWorld, runWorld } from "../support/runs.ts";

const NEVER = new AbortController().signal;
const MINUTE = 60;

interface StoredMessage {
  readonly message_id: string;
  readonly body: string;
  readonly content_type: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly group_id: string;
  readonly priority: number;
  readonly published_at: Date;
  readonly visible_at: Date;
  readonly expires_at: Date;
}

/** Every message there is, in order. */
async function messages({ db }: RunWorld): Promise<readonly StoredMessage[]> {
  const { rows } = await sql<StoredMessage>`
    select m.*, convert_from(b.payload, 'UTF8') as body, b.content_type, b.headers
    from messages m join message_bodies b using (project_id, queue_id, message_id)
    order by m.published_at, m.seq, m.message_id`.execute(db);
  return rows;
}

/** A job that publishes to the queue `orders` every minute, unless `job` says otherwise. */
function publishingJob(world: RunWorld, job: Parameters<typeof createJob>[1] = {}) {
  return createJob(world, { url: "", queue: "orders", ...job });
}

/** One more job, which is due with the one that was made before. */
async function another(world: RunWorld, job: Parameters<typeof createJob>[1] = {}): Promise<void> {
  await world.cron.createCronJob({ cronExpr: "* * * * *", ...job });
}

describe("a fire of a cron job with a queue", () => {
  test("publishes one message with the job's payload, and its run is over with the message's id", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    const payload = Buffer.from('{"n": 1.10}');
    const { cronId } = await publishingJob(world, { payload, headers: { "X-Tenant": "acme" }, ttlSeconds: 90 });
    await world.database.advanceClock(31);
    await world.fire();

    const [message, ...others] = await messages(world);
    expect(others).toEqual([]);
    expect(message).toMatchObject({ body: '{"n": 1.10}', content_type: "application/json", group_id: "", priority: 0 });
    const { items } = await world.tasks.listRuns({});
    expect(items).toMatchObject([
      {
        cronId,
        state: RunState.SUCCEEDED,
        trigger: RunTrigger.SCHEDULE,
        messageId: formatId("msg", message?.message_id ?? ""),
        attempt: 0,
      },
    ]);
    expect(items[0]?.nextAttemptAt).toBeUndefined();
    const [run] = await world.runs();
    const late = Number(message?.headers["carillon-lateness-ms"]);
    expect(late).toBeGreaterThanOrEqual(0);
    expect(late).toBeLessThan(10_000);
    expect(message?.headers).toEqual({
      "x-tenant": "acme",
      "carillon-cron-id": cronId,
      "carillon-cron-run-id": items[0]?.runId,
      "carillon-trigger": "schedule",
      "carillon-scheduled-at": run?.fire_at.toISOString(),
      "carillon-effective-at": run?.fire_at.toISOString(),
      "carillon-lateness-ms": `${late}`,
    });
    expect(message?.expires_at.getTime()).toBe((message?.visible_at.getTime() ?? 0) + 90_000);
    expect(run?.expires_at?.getTime()).toBe((run?.finished_at?.getTime() ?? 0) + 30 * 86_400_000);
    // Nothing is left for the dispatcher.
    await world.dispatch();
    expect(world.receiver.requests).toEqual([]);
    expect(world.errors).toEqual([]);
  });

  test("has an empty object for a payload where there is none", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    await publishingJob(world, { contentType: "text/plain" });
    await world.database.advanceClock(31);
    await world.fire();
    expect(await messages(world)).toMatchObject([{ body: "{}", content_type: "application/json" }]);
  });

  test("is published once for each fire time, however many nodes meet at each one", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    await makeQueue(world.db, "test", { name: "fifo", type: "fifo" });
    for (let n = 0; n < 6; n++) {
      await world.cron.createCronJob({ cronExpr: "* * * * * *", queue: n % 2 === 0 ? "orders" : "fifo" });
    }
    const nodes = [world.scheduler(), world.scheduler(), world.scheduler()];
    for (let second = 0; second < 20; second++) {
      await world.database.advanceClock(1);
      await Promise.all(nodes.map((tick) => tick(NEVER)));
    }
    await world.fire();

    expect(world.errors).toEqual([]);
    const runs = await world.runs();
    expect(runs.length).toBeGreaterThanOrEqual(6 * 20);
    expect(new Set(runs.map(({ state }) => state))).toEqual(new Set(["succeeded"]));
    const published = await messages(world);
    expect(published.map(({ message_id }) => message_id).sort()).toEqual(runs.map((run) => run.message_id).sort());
    const fires = published.map(({ headers }) => `${headers["carillon-cron-id"]} ${headers["carillon-scheduled-at"]}`);
    expect(new Set(fires).size).toBe(runs.length);
    expect(new Set(published.map(({ headers }) => headers["carillon-cron-id"])).size).toBe(6);
  });

  test("leaves neither run nor message when its transaction is rolled back, and then makes both once", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    const { cronId } = await publishingJob(world);
    await sql`
      create function refuse_commit() returns trigger language plpgsql as $$
      begin raise exception 'the node dies here'; end $$`.execute(world.db);
    await sql`
      create constraint trigger refuse_commit after update on cron_jobs deferrable initially deferred
      for each row execute function refuse_commit()`.execute(world.db);
    await world.database.advanceClock(31);
    await expect(world.scheduler()(NEVER)).rejects.toThrow("the node dies here");
    expect(await world.runs()).toEqual([]);
    expect(await messages(world)).toEqual([]);
    const { rows: counted } = await sql`select from queue_history where published > 0`.execute(world.db);
    expect(counted).toEqual([]);

    await sql`drop trigger refuse_commit on cron_jobs`.execute(world.db);
    await Promise.all([world.scheduler()(NEVER), world.scheduler()(NEVER)]);
    const [run, ...others] = await world.runs();
    expect(others).toEqual([]);
    expect(run).toMatchObject({ state: "succeeded", cron_id: parseId("cron", cronId) });
    expect((await messages(world)).map(({ message_id }) => message_id)).toEqual([run?.message_id]);
  });

  test("is not held up by earlier ones, whatever the overlap policy", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    for (const overlapPolicy of [
      OverlapPolicy.SKIP,
      OverlapPolicy.QUEUE,
      OverlapPolicy.CANCEL_PREVIOUS,
      OverlapPolicy.ALLOW,
    ]) {
      await publishingJob(world, { overlapPolicy, misfirePolicy: MisfirePolicy.ALL });
    }
    const before = (await messages(world)).length;
    await world.database.advanceClock(10 * MINUTE);
    await world.fire();
    const runs = await world.runs();
    expect(runs.every(({ state, trigger }) => state === "succeeded" && trigger === "catch_up")).toBe(true);
    expect((await messages(world)).length - before).toBe(runs.length);
    // The first jobs were made some minutes before the last one.
    expect(Map.groupBy(runs, (run) => run.cron_id).size).toBe(4);
    for (const ofJob of Map.groupBy(runs, (run) => run.cron_id).values())
      expect(ofJob.length).toBeGreaterThanOrEqual(10);
  });

  test("is published to its group in order, and with its priority", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test", { name: "fifo", type: "fifo" });
    await publishingJob(world, { queue: "fifo", groupId: "g", priority: 7, misfirePolicy: MisfirePolicy.ALL });
    await world.database.advanceClock(10 * MINUTE);
    await world.fire();
    const published = await messages(world);
    expect(published).toHaveLength(10);
    expect(published.every(({ group_id, priority }) => group_id === "g" && priority === 7)).toBe(true);
    const instants = published.map(({ headers }) => headers["carillon-scheduled-at"]);
    expect(instants).toEqual(instants.toSorted());
  });

  test("is published in order where many are large", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test", { name: "fifo", type: "fifo" });
    const payload = Buffer.from(JSON.stringify("x".repeat(1_000_000)));
    await publishingJob(world, { queue: "fifo", payload, misfirePolicy: MisfirePolicy.ALL });
    await world.database.advanceClock(10 * MINUTE);
    await world.fire();
    const published = await messages(world);
    expect(published.map(({ body }) => body.length)).toEqual(Array(10).fill(payload.length));
    const { rows } = await sql<{ at: string }>`
      select b.headers ->> 'carillon-scheduled-at' as at from messages m
      join message_bodies b using (project_id, queue_id, message_id) order by m.seq`.execute(world.db);
    expect(rows).toHaveLength(10);
    expect(rows).toEqual(rows.toSorted((a, b) => (a.at < b.at ? -1 : 1)));
  });

  test("with spreading is recorded at its fire time, and its message becomes available at the effective time", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    await publishingJob(world, { spreadSeconds: 3_600, jitterSeconds: 3_600 });
    await world.database.advanceClock(31);
    await world.fire();
    const [run] = await world.runs();
    const [message] = await messages(world);
    expect(run).toMatchObject({ state: "succeeded" });
    const effectiveAt = run?.effective_at?.getTime() ?? 0;
    expect(effectiveAt).toBeGreaterThan((run?.fire_at.getTime() ?? 0) + 2_000);
    const lateMs = (message?.visible_at.getTime() ?? 0) - effectiveAt;
    expect(lateMs).toBeGreaterThanOrEqual(0);
    expect(lateMs).toBeLessThan(1_000);
    expect(message?.headers).toMatchObject({
      "carillon-scheduled-at": run?.fire_at.toISOString(),
      "carillon-effective-at": run?.effective_at?.toISOString(),
      "carillon-lateness-ms": "0",
    });
  });

  test("counts against max_runs", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    const { cronId } = await publishingJob(world, { maxRuns: 2 });
    await world.cron.triggerCronJob({ cronId });
    for (let minute = 0; minute < 4; minute++) {
      await world.database.advanceClock(MINUTE);
      await world.fire();
    }
    expect(await getJob(world, cronId)).toMatchObject({ state: CronJobState.COMPLETED, runCount: 2 });
    expect(await messages(world)).toHaveLength(3);
  });

  test("is a message of its own in a queue that compares content", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test", { content_deduplication: true, deduplication_window_seconds: 86_400 });
    await publishingJob(world, { misfirePolicy: MisfirePolicy.ALL });
    await world.database.advanceClock(5 * MINUTE);
    await world.fire();
    expect(await messages(world)).toHaveLength(5);
  });

  test("is not published again within the queue's window when its record is gone", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    const { cronId } = await publishingJob(world);
    const [before] = await world.db.selectFrom("cron_jobs").selectAll().execute();
    await world.database.advanceClock(31);
    await world.fire();
    const [first] = await world.runs();
    await world.db.deleteFrom("runs").execute();
    await world.db
      .updateTable("cron_jobs")
      .set({ next_run_at: before?.next_run_at ?? null })
      .execute();
    await world.fire();
    const [again] = await world.runs();
    expect(again).toMatchObject({ state: "succeeded", message_id: first?.message_id });
    expect(again?.run_id).not.toBe(first?.run_id);
    expect(await messages(world)).toHaveLength(1);
    expect(cronId).toBe(formatId("cron", again?.cron_id ?? ""));
  });

  test("counts in the queue's history", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    await publishingJob(world, { misfirePolicy: MisfirePolicy.ALL });
    await world.database.advanceClock(3 * MINUTE);
    await world.fire();
    const { rows } = await sql`select sum(published)::int as published from queue_history`.execute(world.db);
    expect(rows).toEqual([{ published: 3 }]);
  });
});

describe("a fire whose queue is gone", () => {
  test("is a failed run with the reason, and the other jobs of the tick fire", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    const doomed = await makeQueue(world.db, "test", { name: "doomed" });
    const lost = await publishingJob(world, {
      queue: "doomed",
      onFailureWebhook: `${world.receiver.url}/failed`,
      pauseAfterFailures: 1,
    });
    await another(world, { queue: "orders" });
    await another(world, { url: world.receiver.url });
    await world.db.transaction().execute((trx) => deleteQueue(trx, doomed));
    await world.database.advanceClock(31);
    await world.fire();

    const runs = await world.runs();
    const ofLost = runs.filter(({ cron_id }) => formatId("cron", cron_id ?? "") === lost.cronId);
    expect(ofLost.map(({ state }) => state)).toEqual(["failed"]);
    expect(ofLost[0]).toMatchObject({ error: "there is no queue doomed", message_id: null, attempt: 0 });
    expect(ofLost[0]?.expires_at).toBeInstanceOf(Date);
    const others = runs.filter(({ kind, cron_id }) => kind === "cron" && cron_id !== ofLost[0]?.cron_id);
    expect(new Set(others.map(({ state }) => state))).toEqual(new Set(["pending", "succeeded"]));
    expect(world.errors).toEqual([]);
    expect(await getJob(world, lost.cronId)).toMatchObject({ state: CronJobState.PAUSED });

    await world.dispatch();
    const told = world.receiver.requests.find(({ path }) => path === "/failed");
    const { type, data } = JSON.parse(told?.body.toString() ?? "{}");
    expect({ type, data }).toMatchObject({
      type: "cron.run.failed",
      data: { cron_id: lost.cronId, queue: "doomed", error: "there is no queue doomed", attempts: 0 },
    });
    expect(data).not.toHaveProperty("url");
  });

  test("runs after all when the queue is there again, by its record or by a backfill", async () => {
    await using world = await runWorld();
    const queue = await makeQueue(world.db, "test");
    const { cronId } = await publishingJob(world);
    await world.db.transaction().execute((trx) => deleteQueue(trx, queue));
    for (let minute = 0; minute < 3; minute++) {
      await world.database.advanceClock(MINUTE);
      await world.fire();
    }
    const failed = await world.runs();
    expect(failed.map(({ state }) => state)).toEqual(["failed", "failed", "failed"]);
    await makeQueue(world.db, "test");

    const runId = formatId("run", failed[1]?.run_id ?? "");
    const { run } = await world.cron.runCronRun({ cronId, runId });
    expect(run).toMatchObject({ runId, state: RunState.SUCCEEDED, trigger: RunTrigger.BACKFILL });
    expect(run?.error).toBeUndefined();
    await expect(world.cron.runCronRun({ cronId, runId })).rejects.toThrow("cannot be run afterwards");

    const since = { seconds: BigInt((failed[0]?.fire_at.getTime() ?? 0) / 1_000), nanos: 0 };
    const { backfill, matched } = await world.cron.startCronBackfill({ cronId, since });
    expect(matched).toBe(2);
    const key = {
      project_id: world.projectId,
      backfill_id: parseId("bfl", backfill?.backfillId ?? "") ?? "",
    };
    await world.db.transaction().execute((trx) => stepBackfill(trx, key));
    const { backfill: done } = await world.cron.getCronBackfill({ backfillId: backfill?.backfillId ?? "" });
    expect(done).toMatchObject({ started: 2 });
    const published = await messages(world);
    expect(published.map(({ headers }) => headers["carillon-scheduled-at"]).sort()).toEqual(
      failed.map(({ fire_at }) => fire_at.toISOString()),
    );
    expect(published.every(({ headers }) => headers["carillon-trigger"] === "backfill")).toBe(true);
  });
});

describe("publishers of the same queue in transactions of their own", () => {
  test("hold up no fire of a standard queue", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    await publishingJob(world);
    await using other = await openTransaction(world);
    await sql`select carillon_publish('test', 'orders', '1'::jsonb)`.execute(other.trx);
    await world.database.advanceClock(31);
    await world.fire();
    expect(await messages(world)).toHaveLength(1);
  });

  test("hold up the fires of their FIFO queue, and of no other, until they end", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test", { name: "held", type: "fifo" });
    await makeQueue(world.db, "test", { name: "free", type: "fifo" });
    const held = await publishingJob(world, { queue: "held" });
    await another(world, { queue: "free" });
    const other = await openTransaction(world);
    try {
      await sql`select carillon_publish('test', 'held', '1'::jsonb)`.execute(other.trx);
      await world.database.advanceClock(31);
      await world.fire();
      const fired = (await world.runs()).map(({ cron_id }) => formatId("cron", cron_id ?? ""));
      expect(fired).toHaveLength(1);
      expect(fired).not.toContain(held.cronId);
    } finally {
      await other[Symbol.asyncDispose]();
    }
    await world.fire();
    const ofHeld = (await world.runs()).filter(({ cron_id }) => formatId("cron", cron_id ?? "") === held.cronId);
    expect(ofHeld.map(({ state }) => state)).toEqual(["succeeded"]);
    expect(world.errors).toEqual([]);
  });
});

/** A transaction on a connection of its own, which is rolled back at the end. */
async function openTransaction(world: RunWorld) {
  const db = connect({ url: world.database.url, poolSize: 1 });
  const trx = await db.startTransaction().execute();
  return {
    trx,
    async [Symbol.asyncDispose]() {
      await trx.rollback().execute();
      await db.destroy();
    },
  };
}

describe("a cron job with a queue that is triggered", () => {
  test("publishes at once, and answers with the message", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    const { cronId } = await publishingJob(world);
    await world.cron.pauseCronJob({ cronId });
    const request = { cronId, idempotencyKey: "k" };
    const { run } = await world.cron.triggerCronJob(request);
    expect(run).toMatchObject({ state: RunState.SUCCEEDED, trigger: RunTrigger.MANUAL });
    expect((await world.cron.triggerCronJob(request)).run).toEqual(run);
    const [message, ...others] = await messages(world);
    expect(others).toEqual([]);
    expect(run?.messageId).toBe(formatId("msg", message?.message_id ?? ""));
    expect(message?.headers["carillon-trigger"]).toBe("manual");
    expect((await world.cron.triggerCronJob({ cronId })).run?.messageId).not.toBe(run?.messageId);
    expect((await getJob(world, cronId)).lastRun).toMatchObject({ state: RunState.SUCCEEDED });
  });

  test("is answered with a failed run when its queue is gone", async () => {
    await using world = await runWorld();
    const queue = await makeQueue(world.db, "test");
    const { cronId } = await publishingJob(world);
    await world.db.transaction().execute((trx) => deleteQueue(trx, queue));
    const { run } = await world.cron.triggerCronJob({ cronId });
    expect(run).toMatchObject({ state: RunState.FAILED, error: "there is no queue orders" });
  });
});

describe("an update of the target", () => {
  test("has what is open go to the queue, and so a retry of what is under way", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    const { cronId } = await createJob(world, { overlapPolicy: OverlapPolicy.ALLOW, payload: Buffer.from("7") });
    world.receiver.respond({ status: 500 });
    await world.cron.triggerCronJob({ cronId });
    await world.dispatch();
    await world.cron.triggerCronJob({ cronId });
    await world.cron.triggerCronJob({ cronId, overlapPolicy: OverlapPolicy.QUEUE });
    expect((await world.runs()).map(({ state }) => state).sort()).toEqual(["pending", "pending", "retrying"]);

    const { cronJob } = await world.cron.updateCronJob({ cronId, queue: "orders" });
    expect(cronJob).toMatchObject({ url: "", queue: "orders" });
    const runs = await world.runs();
    expect(runs.map(({ state }) => state)).toEqual(["succeeded", "succeeded", "succeeded"]);
    const published = await messages(world);
    expect(published.map(({ message_id }) => message_id).sort()).toEqual(runs.map((run) => run.message_id).sort());
    expect(published.every(({ body }) => body === "7")).toBe(true);
  });

  test("publishes in place of the retry of an attempt that was under way", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    const { cronId } = await createJob(world);
    const { promise: answer, resolve: release } = Promise.withResolvers<{ readonly status: number }>();
    world.receiver.respond(() => answer);
    await world.cron.triggerCronJob({ cronId });
    await world.dispatcher.tick(NEVER);
    await world.receiver.next();
    await world.cron.updateCronJob({ cronId, queue: "orders" });
    expect(await messages(world)).toEqual([]);
    release({ status: 500 });
    await world.dispatcher.settled();
    const [run] = await world.runs();
    expect(run).toMatchObject({ state: "succeeded", attempt: 1 });
    expect((await messages(world)).map(({ message_id }) => message_id)).toEqual([run?.message_id]);
  });

  test("sends what fires from then on to the URL", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    const { cronId } = await publishingJob(world, { groupId: "g", priority: 3, ttlSeconds: 9 });
    await world.database.advanceClock(MINUTE);
    await world.fire();
    const { cronJob } = await world.cron.updateCronJob({ cronId, url: world.receiver.url });
    expect(cronJob).toMatchObject({ url: `${world.receiver.url}/` });
    for (const field of ["queue", "groupId", "priority", "ttlSeconds"] as const)
      expect(cronJob?.[field]).toBeUndefined();
    await world.database.advanceClock(MINUTE);
    await world.fire();
    await world.dispatch();
    expect(world.receiver.requests).toHaveLength(1);
    expect(await messages(world)).toHaveLength(1);
  });

  test("fires what is due before it at the target that it had then", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    const { cronId } = await publishingJob(world);
    await world.database.advanceClock(31);
    await world.cron.updateCronJob({ cronId, url: world.receiver.url });
    await world.dispatch();
    expect(await messages(world)).toHaveLength(1);
    expect(world.receiver.requests).toEqual([]);
  });

  test("keeps the message's settings while the queue stays, and changes those that are given", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    const { cronId } = await publishingJob(world, { groupId: "g", priority: 3, ttlSeconds: 9 });
    expect((await world.cron.updateCronJob({ cronId, priority: 4 })).cronJob).toMatchObject({
      queue: "orders",
      groupId: "g",
      priority: 4,
      ttlSeconds: 9,
    });
    const updateMask = create(FieldMaskSchema, { paths: ["group_id", "ttl_seconds"] });
    const { cronJob } = await world.cron.updateCronJob({ cronId, updateMask });
    expect(cronJob).toMatchObject({ queue: "orders", priority: 4 });
    expect(cronJob?.groupId).toBeUndefined();
    expect(cronJob?.ttlSeconds).toBeUndefined();
  });
});

describe("the dead man's switch of a job with a queue", () => {
  test("takes a publish for a success, at once", async () => {
    await using world = await runWorld();
    await makeQueue(world.db, "test");
    const { cronId } = await publishingJob(world, { startGraceSeconds: 5, finishGraceSeconds: 20, spreadSeconds: 30 });
    await world.database.advanceClock(MINUTE);
    await world.fire();
    const { rows } = await sql`select from cron_watches`.execute(world.db);
    expect(rows).toEqual([]);
    expect((await getJob(world, cronId)).overdueFires).toBe(0);
  });

  test("tells of fires whose queue is gone, and of the first that is published again", async () => {
    await using world = await runWorld();
    const queue = await makeQueue(world.db, "test");
    const { cronId } = await publishingJob(world, { finishGraceSeconds: 5 });
    await world.db.transaction().execute((trx) => deleteQueue(trx, queue));
    await world.database.advanceClock(MINUTE);
    await world.fire();
    await world.database.advanceClock(10);
    await world.fire();
    expect((await getJob(world, cronId)).overdueFires).toBe(1);
    await makeQueue(world.db, "test");
    await world.database.advanceClock(MINUTE - 10);
    await world.fire();
    expect((await getJob(world, cronId)).overdueFires).toBe(0);
  });
});

test("a fire waits for no lock that publishers of two FIFO queues take in another order", async () => {
  await using world = await runWorld();
  const first = await makeQueue(world.db, "test", { name: "a", type: "fifo" });
  const second = await makeQueue(world.db, "test", { name: "b", type: "fifo" });
  const [low, high] = [first, second].toSorted((a, b) => (a.queue_id < b.queue_id ? -1 : 1));
  await publishingJob(world, { queue: "a" });
  await another(world, { queue: "b" });
  await world.database.advanceClock(31);
  const message = {
    payload: Buffer.from("1"),
    contentType: "",
    headers: {},
    groupId: "",
    priority: 0,
    delaySeconds: 0,
  };
  // It has the one that comes last, and wants the one that the scheduler has by then.
  const other = connect({ url: world.database.url, poolSize: 1 });
  try {
    const trx = await other.startTransaction().execute();
    await publishMessages(trx, high ?? first, [message]);
    const tick = world.scheduler()(NEVER);
    await publishMessages(trx, low ?? first, [message]);
    await trx.commit().execute();
    await tick;
    await world.fire();
  } finally {
    await other.destroy();
  }
  expect(world.errors).toEqual([]);
  expect((await world.runs()).map(({ state }) => state)).toEqual(["succeeded", "succeeded"]);
});
