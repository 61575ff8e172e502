import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import {
  type CreateCronJobRequestSchema,
  CronJobState,
  CronOverdueReason,
  TaskType,
} from "../../gen/scheduling/v1/cron_service_pb.js";
import { RunDisposition, RunState, RunTrigger, RunWait } from "../../gen/scheduling/v1/run_pb.js";
import { parseId } from "../../src/domain/ids.ts";
import { parseSignal } from "../../src/domain/ping.ts";
import { insertEventWebhook } from "../../src/store/event-webhooks.ts";
import { takePing } from "../../src/store/pings.ts";
import { pruneRuns } from "../../src/store/runs-pruning.ts";
import { createJob, getJob, type RunWorld, runWorld } from "../support/runs.ts";

const RID = "8b4f1e0a-6f6c-4f0e-9d5e-000000000001";
const OTHER_RID = "8b4f1e0a-6f6c-4f0e-9d5e-000000000002";

interface Monitored extends RunWorld {
  readonly cronId: string;
  /** The first fire time; the clock is half a minute before it. */
  readonly fireAt: Date;
  /** Pings as the path would say it. */
  ping(signal?: string, rid?: string | null, body?: string | null): ReturnType<typeof takePing>;
  /** Moves the clock and lets the workers look. */
  later(seconds: number): Promise<void>;
  /** The ledger, newest first. */
  ledger(): Promise<Awaited<ReturnType<RunWorld["cron"]["listCronRuns"]>>["items"]>;
  /** The events so far, oldest first, of webhooks for `cron.*`. */
  events(): Promise<{ type: string; data: Record<string, unknown> }[]>;
}

/** A monitor of something that runs every minute, unless `job` says otherwise. */
async function monitored(job: MessageInitShape<typeof CreateCronJobRequestSchema> = {}): Promise<Monitored> {
  const world = await runWorld();
  const hook = { name: "", url: "http://127.0.0.1:1/hook", event_types: ["cron.*"] };
  await insertEventWebhook(world.db, { project_id: world.projectId, ...hook });
  const { cronId, nextRunAt } = await createJob(world, { taskType: TaskType.MONITOR, url: "", ...job });
  const of = { projectId: world.projectId, cronId: parseId("cron", cronId) ?? expect.fail() };
  return {
    ...world,
    cronId,
    fireAt: timestampDate(nextRunAt ?? expect.fail()),
    ping: (signal = "", rid = null, body = null) =>
      takePing(world.db, of, { ...(parseSignal(signal) ?? expect.fail()), rid, body }),
    async later(seconds) {
      await world.database.advanceClock(seconds);
      await world.fire();
      await world.reap();
    },
    ledger: async () => (await world.cron.listCronRuns({ cronId })).items,
    async events() {
      const rows = await world.db.selectFrom("callbacks").select("body").orderBy("callback_id").execute();
      return rows.map(({ body }) => JSON.parse(body.toString()));
    },
  };
}

const types = async (world: Monitored) => (await world.events()).map(({ type }) => type);

describe("a fire of a monitor", () => {
  test("waits for a ping, and nothing is ever sent for it", async () => {
    await using world = await monitored();
    await world.later(31);
    await world.dispatch();
    const [record] = await world.ledger();
    expect(record).toMatchObject({
      state: RunState.PENDING,
      trigger: RunTrigger.PING,
      waitingFor: RunWait.PING,
      attempt: 0,
    });
    expect(timestampDate(record?.scheduledAt ?? expect.fail())).toEqual(world.fireAt);
    expect(record?.endpointId).toBeUndefined();
    expect(world.receiver.requests).toEqual([]);
  });

  test("is kept by a ping of success", async () => {
    await using world = await monitored();
    await world.later(31);
    await world.ping();
    const [record, ...others] = await world.ledger();
    expect(others).toEqual([]);
    expect(record).toMatchObject({
      state: RunState.SUCCEEDED,
      disposition: RunDisposition.RAN,
      trigger: RunTrigger.PING,
    });
    expect(record?.durationMs).toBeUndefined();
    expect(timestampDate(record?.scheduledAt ?? expect.fail())).toEqual(world.fireAt);
    await world.later(28);
    expect(await types(world)).toEqual([]);
  });

  test("is one run from the ping of its start to that of its end", async () => {
    await using world = await monitored({ finishGraceSeconds: 50 });
    await world.later(31);
    await world.ping("start");
    expect(await world.ledger()).toMatchObject([{ state: RunState.RUNNING, attempt: 1 }]);
    await world.later(20);
    await world.ping("0", null, "done");
    const [record, ...others] = await world.ledger();
    expect(others).toEqual([]);
    expect(record).toMatchObject({ state: RunState.SUCCEEDED, exitCode: 0 });
    expect(record?.durationMs).toBeGreaterThanOrEqual(20_000);
    const { run } = await world.cron.getCronRun({ cronId: world.cronId, runId: record?.runId ?? "" });
    expect(run?.pings).toMatchObject([{}, { exitCode: 0, body: "done" }]);
  });

  test("takes the ping that comes before a worker has looked", async () => {
    await using world = await monitored();
    await world.database.advanceClock(95);
    await world.ping();
    await world.later(1);
    const [newest, before] = await world.ledger();
    expect(newest).toMatchObject({ state: RunState.SUCCEEDED, trigger: RunTrigger.PING });
    expect(timestampDate(newest?.scheduledAt ?? expect.fail()).getTime()).toBe(world.fireAt.getTime() + 60_000);
    expect(before).toMatchObject({ state: RunState.MISSED });
  });

  test("takes a ping from a clock that is fast, and is kept by it", async () => {
    await using world = await monitored({ finishGraceSeconds: 20 });
    await world.database.advanceClock(10);
    await world.ping("start");
    const [record] = await world.ledger();
    expect(timestampDate(record?.scheduledAt ?? expect.fail())).toEqual(world.fireAt);
    await world.ping();
    await world.later(70);
    expect((await world.ledger()).filter(({ state }) => state === RunState.SUCCEEDED)).toHaveLength(1);
    expect(await types(world)).toEqual([]);
  });

  test("does not take a ping that is nearer to the fire before it", async () => {
    await using world = await monitored();
    await world.later(31);
    await world.ping();
    await world.later(20);
    await world.ping("fail");
    const [beside] = await world.ledger();
    expect(beside).toMatchObject({ state: RunState.FAILED, trigger: RunTrigger.MANUAL });
    await world.later(40);
    expect((await world.ledger())[0]).toMatchObject({ state: RunState.PENDING });
  });

  test("that nobody pings is missed when its grace ends, and the monitor is overdue, which is told", async () => {
    await using world = await monitored({ finishGraceSeconds: 40 });
    await world.later(31);
    await world.later(35);
    expect((await world.ledger()).at(-1)).toMatchObject({ state: RunState.PENDING });
    await world.later(10);
    expect((await world.ledger()).at(-1)).toMatchObject({
      state: RunState.MISSED,
      disposition: RunDisposition.MISSED,
      error: "no ping came in time",
    });
    expect(await getJob(world, world.cronId)).toMatchObject({
      overdueReason: CronOverdueReason.NOT_SUCCEEDED,
      overdueFires: 1,
    });
    expect(await types(world)).toEqual(["cron.overdue"]);
    const [{ data } = expect.fail()] = await world.events();
    expect(data).not.toHaveProperty("url");
    expect(data).toMatchObject({ scheduled_at: world.fireAt.toISOString() });
  });

  test("becomes a run by a ping that comes late, and the monitor recovers", async () => {
    await using world = await monitored({ finishGraceSeconds: 10 });
    await world.later(31);
    await world.later(14);
    expect(await world.ledger()).toMatchObject([{ state: RunState.MISSED }]);
    await world.ping();
    expect(await world.ledger()).toMatchObject([{ state: RunState.SUCCEEDED, disposition: RunDisposition.RAN }]);
    expect((await getJob(world, world.cronId)).overdueSince).toBeUndefined();
    expect(await types(world)).toEqual(["cron.overdue", "cron.recovered"]);
  });

  test("whose start is watched is overdue when nobody tells of one in time", async () => {
    await using world = await monitored({ startGraceSeconds: 5, finishGraceSeconds: 50 });
    await world.later(31);
    await world.later(9);
    expect(await getJob(world, world.cronId)).toMatchObject({ overdueReason: CronOverdueReason.NOT_STARTED });
    // The run may come all the same.
    expect(await world.ledger()).toMatchObject([{ state: RunState.PENDING }]);
    await world.ping();
    expect(await types(world)).toEqual(["cron.overdue", "cron.recovered"]);
  });

  test("has failed when its start is told of and its end is not", async () => {
    await using world = await monitored({ cronExpr: "@every 1h", finishGraceSeconds: 30 });
    await world.later(3_601);
    await world.ping("start");
    await world.later(40);
    expect(await world.ledger()).toMatchObject([{ state: RunState.FAILED, error: "no ping told of its end in time" }]);
    expect((await types(world)).toSorted()).toEqual(["cron.overdue", "cron.run.failed"]);
    await world.dispatch();
    expect(world.receiver.requests).toEqual([]);
  });

  test("that comes due while another run is given up waits on for its own ping", async () => {
    await using world = await monitored({ finishGraceSeconds: 100 });
    await world.later(31);
    await world.ping("start");
    await world.later(60);
    await world.later(60);
    await world.dispatch();
    const states = (await world.ledger()).map(({ state }) => state);
    expect(states).toEqual([RunState.PENDING, RunState.PENDING, RunState.FAILED]);
    expect(world.receiver.requests).toEqual([]);
  });
});

describe("a ping of failure", () => {
  test.each([
    ["fail", "the job said that it failed", undefined],
    ["3", "exit code 3", 3],
  ])("/%s is told at once, and a success in time keeps the fire", async (signal, error, exitCode) => {
    await using world = await monitored({ finishGraceSeconds: 20 });
    await world.later(31);
    await world.ping(signal);
    expect(await world.ledger()).toMatchObject([{ state: RunState.FAILED, error }]);
    expect((await world.ledger())[0]?.exitCode).toBe(exitCode);
    expect(await world.events()).toMatchObject([{ type: "cron.run.failed", data: { error, trigger: "ping" } }]);
    await world.ping();
    await world.later(25);
    expect(await types(world)).toEqual(["cron.run.failed"]);
  });

  test("goes to the failure webhook of the monitor", async () => {
    await using world = await monitored();
    const { url } = world.receiver;
    await world.cron.updateCronJob({ cronId: world.cronId, onFailureWebhook: url });
    await world.later(31);
    await world.ping("fail");
    await world.dispatch();
    expect(world.receiver.requests.map(({ body }) => JSON.parse(body.toString()).type)).toEqual(["cron.run.failed"]);
  });

  test("does not keep the fire", async () => {
    await using world = await monitored({ finishGraceSeconds: 20 });
    await world.later(31);
    await world.ping("fail");
    await world.later(25);
    expect(await types(world)).toEqual(["cron.run.failed", "cron.overdue"]);
  });
});

describe("pings of several runs", () => {
  test("pair by their rid", async () => {
    await using world = await monitored({ finishGraceSeconds: 500 });
    await world.later(31);
    await world.ping("start", RID);
    await world.later(60);
    await world.ping("start", OTHER_RID);
    await world.ping("fail", RID);
    await world.ping("", OTHER_RID);
    expect(await world.ledger()).toMatchObject([
      { rid: OTHER_RID, state: RunState.SUCCEEDED },
      { rid: RID, state: RunState.FAILED },
    ]);
  });

  test("count once when they are repeated", async () => {
    await using world = await monitored({ finishGraceSeconds: 500 });
    await world.later(31);
    await world.ping("start", RID);
    const again = await world.ping("start", RID);
    expect(again?.note).toContain("started already");
    await world.ping("", RID);
    for (const rid of [RID, null]) {
      const repeat = await world.ping("", rid);
      expect(repeat?.note).toContain("a repeat");
    }
    await world.ping("start", RID);
    expect(await world.ledger()).toMatchObject([{ state: RunState.SUCCEEDED }]);
  });

  test("call off the run that has started without a rid when another starts so", async () => {
    await using world = await monitored({ finishGraceSeconds: 500 });
    await world.later(31);
    await world.ping("start");
    await world.ping("start", RID);
    await world.ping("start");
    const [newest, withRid, first] = await world.ledger();
    expect(newest).toMatchObject({ state: RunState.RUNNING, trigger: RunTrigger.MANUAL });
    expect(withRid).toMatchObject({ state: RunState.RUNNING, rid: RID });
    expect(first).toMatchObject({ state: RunState.CANCELED, error: "another start came before its end" });
    expect(await types(world)).toEqual([]);
  });

  test("of the newest fire keep those before it", async () => {
    await using world = await monitored({ finishGraceSeconds: 100 });
    await world.later(31);
    await world.later(60);
    await world.ping();
    await world.later(45);
    const states = (await world.ledger()).map(({ state }) => state);
    expect(states).toEqual([RunState.SUCCEEDED, RunState.MISSED]);
    expect(await types(world)).toEqual([]);
  });
});

describe("a log", () => {
  test("is kept with the run that is under way, and judges nothing", async () => {
    await using world = await monitored();
    await world.later(31);
    await world.ping("start");
    await world.ping("log", null, "half way");
    const [record] = await world.ledger();
    expect(record).toMatchObject({ state: RunState.RUNNING });
    const { run } = await world.cron.getCronRun({ cronId: world.cronId, runId: record?.runId ?? "" });
    expect(run?.pings.map(({ body }) => body)).toEqual([undefined, "half way"]);
  });

  test("beyond the twentieth of a run is not kept, which is said", async () => {
    await using world = await monitored();
    expect((await world.ping("log"))?.note).toContain("there is no run");
    await world.later(31);
    for (let count = 0; count < 20; count++) expect((await world.ping("log"))?.note).toBeUndefined();
    expect((await world.ping("log"))?.note).toContain("not kept");
    expect(await world.db.selectFrom("run_pings").selectAll().execute()).toHaveLength(20);
  });
});

describe("a monitor", () => {
  test("that is paused takes pings as runs beside its schedule, and is not waited for", async () => {
    await using world = await monitored({ finishGraceSeconds: 10 });
    await world.cron.pauseCronJob({ cronId: world.cronId });
    await world.later(45);
    expect((await world.ping())?.run).toMatchObject({ state: "succeeded", trigger: "manual" });
    expect((await getJob(world, world.cronId)).state).toBe(CronJobState.PAUSED);
    expect(await types(world)).toEqual([]);
  });

  test("that is deleted is pinged no more, and its fire waits no more", async () => {
    await using world = await monitored();
    await world.later(31);
    await world.cron.deleteCronJob({ cronId: world.cronId });
    expect(await world.ping()).toBeUndefined();
    expect(await world.db.selectFrom("ping_tokens").selectAll().execute()).toEqual([]);
    expect((await world.runs()).map(({ state }) => state)).toEqual(["canceled"]);
  });

  test("is held against nobody while no node could take pings", async () => {
    await using world = await monitored({ finishGraceSeconds: 40 });
    await world.later(1_800);
    const [waiting, missed] = await world.ledger();
    expect(waiting).toMatchObject({ state: RunState.PENDING, waitingFor: RunWait.PING });
    expect(missed).toMatchObject({ state: RunState.MISSED, fireCount: 29 });
    expect(await types(world)).toEqual([]);
    await world.later(35);
    expect(await types(world)).toEqual([]);
    await world.later(10);
    expect(await types(world)).toEqual(["cron.overdue"]);
    expect(await getJob(world, world.cronId)).toMatchObject({ overdueFires: 1 });
  });

  test("answers for each of its instants what became of it", async () => {
    await using world = await monitored({ finishGraceSeconds: 10 });
    const explain = async () =>
      (
        await world.cron.explainCronFire({
          cronId: world.cronId,
          at: { seconds: BigInt(world.fireAt.getTime() / 1_000) },
        })
      ).explanation;
    await world.later(31);
    expect(await explain()).toContain("no ping has told of a run yet");
    await world.later(12);
    expect(await explain()).toContain("nobody told of a run; no ping came in time");
    await world.ping();
    expect(await explain()).toContain("is succeeded");
  });

  test("ends after max_runs fires, and its rows go with its runs", async () => {
    await using world = await monitored({ maxRuns: 1, retentionDays: 0 });
    await world.later(31);
    await world.ping("", null, "text");
    expect(await getJob(world, world.cronId)).toMatchObject({ state: CronJobState.COMPLETED, runCount: 1 });
    await world.database.advanceClock(3_700);
    expect(await pruneRuns(world.db, 100)).toBe(1);
    expect(await world.db.selectFrom("run_pings").selectAll().execute()).toEqual([]);
  });
});
