import { timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { sql } from "kysely";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ClockService } from "../../gen/scheduling/v1/clock_service_pb.js";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { verify } from "../../src/webhook/sign.ts";
import { oracleFires, YEAR_SCHEDULES } from "../domain/oracle-years.ts";
import { offsetChanges } from "../domain/schedule-oracle.ts";
import { sized } from "../fault/scale.ts";
import { startTestCarillon, TEST_KEY, type TestCarillon } from "../support/carillon.ts";
import { testDatabase } from "../support/database.ts";
import { type Receiver, startReceiver } from "../support/receiver.ts";
import { otherProject } from "./calls.ts";
import { type ServiceFace, serviceFaces } from "./service-faces.ts";

const VIRTUAL = { CARILLON_VIRTUAL_CLOCK: "on" };
const DAY_MS = 86_400_000;
const iso = (time: string) => new Date(time).toISOString();

/** The clock and the cron jobs over REST. */
function restFaces(carillon: () => TestCarillon): readonly [ServiceFace, ServiceFace] {
  const [clock] = serviceFaces(ClockService, carillon);
  const [cron] = serviceFaces(CronService, carillon);
  return [clock as ServiceFace, cron as ServiceFace];
}

/** Moves the clock to the instant, in as many calls as it takes. Returns the sums of what they answer. */
async function advance(clock: ServiceFace, to: string): Promise<{ steps: number; fires: number }> {
  const sums = { steps: 0, fires: 0 };
  for (let calls = 0; calls < 200; calls++) {
    const { reached, steps, fires } = await clock.call("advanceClock", { to });
    sums.steps += steps;
    sums.fires += fires;
    if (reached) return sums;
  }
  throw new Error(`the clock has not reached ${to}`);
}

/** Every record of the job, oldest first. */
async function ledgerOf(cron: ServiceFace, cronId: string) {
  const items = [];
  for (let cursor: string | undefined = ""; cursor !== undefined; ) {
    const page = await cron.call("listCronRuns", { cron_id: cronId, limit: 100, ...(cursor !== "" && { cursor }) });
    items.push(...page.items);
    cursor = page.next_cursor || undefined;
  }
  return items.toReversed();
}

describe("with a virtual clock", () => {
  let carillon: TestCarillon;
  let receiver: Receiver;
  beforeAll(async () => {
    carillon = await startTestCarillon(VIRTUAL);
    receiver = await startReceiver();
  });
  afterAll(async () => {
    await carillon[Symbol.asyncDispose]();
    await receiver[Symbol.asyncDispose]();
  });

  describe.each(serviceFaces(ClockService, () => carillon))("over $name", (clock) => {
    const cron = serviceFaces(CronService, () => carillon).find(({ name }) => name === clock.name) as ServiceFace;
    const now = async () => iso((await clock.call("getClock", {})).now);
    const later = async (ms: number) => new Date(Date.parse(await now()) + ms).toISOString();

    test("stands still until it is moved, and then goes exactly so far", async () => {
      const before = await now();
      const { now: after, ...rest } = await clock.call("advanceClock", { seconds: 90 });
      expect(Date.parse(after) - Date.parse(before)).toBe(90_000);
      expect(rest).toMatchObject({ reached: true, settled: true, steps: 0, fires: 0 });
      expect(await clock.call("getClock", {})).toMatchObject({ virtual: true });
      expect(await now()).toBe(iso(after));
    });

    test("goes from one instant at which something is due to the next, as far as it may", async () => {
      const job = await cron.call("createCronJob", { cron_expr: "@every 1h", url: `${receiver.url}/step` });
      expect(iso((await clock.call("getClock", {})).next_at)).toBe(iso(job.next_run_at));
      const moved = await clock.call("advanceClock", { seconds: 86_400, max_steps: 2 });
      expect(moved).toMatchObject({ reached: false, settled: true, steps: 2, fires: 2 });
      expect(Date.parse(moved.now) - Date.parse(job.next_run_at)).toBe(3_600_000);
      expect(Date.parse(moved.next_at) - Date.parse(moved.now)).toBe(3_600_000);
      await cron.call("deleteCronJob", { cron_id: job.cron_id });
    });

    test("refuses to go back, and what says not where to go", async () => {
      await expect(clock.call("advanceClock", { to: await later(-1_000) })).rejects.toMatchObject({ fields: ["to"] });
      await expect(clock.call("advanceClock", {})).rejects.toMatchObject({ fields: ["seconds"] });
      const both = clock.call("advanceClock", { seconds: 1, to: await later(1_000) });
      await expect(both).rejects.toMatchObject({ fields: ["to"] });
    });

    test("refuses a second call while one moves it", async () => {
      const { promise: answer, resolve } = Promise.withResolvers<void>();
      receiver.respond(async () => {
        await answer;
        return {};
      });
      const job = await cron.call("createCronJob", { cron_expr: "@every 1h", url: `${receiver.url}/held` });
      const first = clock.call("advanceClock", { seconds: 3_600 });
      await receiver.next(({ path }) => path === "/held");
      await expect(clock.call("advanceClock", { seconds: 1 })).rejects.toMatchObject({ reason: "CLOCK_MOVING" });
      resolve();
      expect(await first).toMatchObject({ reached: true, fires: 1 });
      await cron.call("deleteCronJob", { cron_id: job.cron_id });
      receiver.respond({});
    });

    test("makes retries at their instants, and signs by the time that receivers live in", async () => {
      receiver.respond(({ headers }) => ({ status: headers["carillon-attempt"] === "1" ? 500 : 200 }));
      const job = await cron.call("createCronJob", {
        cron_expr: "@every 1h",
        url: `${receiver.url}/retried`,
        secret: "the job's secret",
        retry_policy: { waits_seconds: [600], jitter: "none" },
      });
      await clock.call("advanceClock", { to: iso(job.next_run_at) });
      const { now: after, next_at } = await clock.call("getClock", {});
      expect(Date.parse(next_at) - Date.parse(after)).toBe(600_000);
      await advance(clock, await later(600_000));
      const [run] = await ledgerOf(cron, job.cron_id);
      expect(run).toMatchObject({ state: "succeeded", attempt: 2 });
      const request = await receiver.next(({ path }) => path === "/retried");
      const nowSeconds = request.receivedAt / 1_000;
      expect(verify(request.headers, request.body, "the job's secret", { nowSeconds })).toBe(true);
      await cron.call("deleteCronJob", { cron_id: job.cron_id });
      receiver.respond({});
    });

    test("goes to tasks and delayed messages too", async () => {
      const at = await later(7_200_000);
      const task = { task_url: `${receiver.url}/task`, payload: {}, run_at: at };
      expect((await carillon.rest("POST", "/task/schedule", task)).status).toBe(200);
      const queue = `pushed-${clock.name.toLowerCase()}`;
      expect((await carillon.rest("POST", "/queue/create", { queue })).status).toBe(200);
      const subscribed = await carillon.rest("POST", `/queue/push_subscribe/${queue}`, { url: `${receiver.url}/push` });
      expect(subscribed.status).toBe(200);
      const message = { queue, payload: {}, delay_seconds: 3_600 };
      expect((await carillon.rest("POST", "/queue/publish", message)).status).toBe(200);

      const pushed = await clock.call("advanceClock", { to: at, max_steps: 1 });
      expect(Date.parse(at) - Date.parse(pushed.now)).toBe(3_600_000);
      await receiver.next(({ path }) => path === "/push");
      expect(receiver.requests.filter(({ path }) => path === "/task")).toHaveLength(clock.name === "REST" ? 0 : 1);
      expect(await clock.call("advanceClock", { to: at })).toMatchObject({ reached: true, steps: 1 });
      await receiver.next(({ path }) => path === "/task");
    });
  });

  test("answers in time though a receiver does not, and goes on when it is called again", async () => {
    const [clock, cron] = restFaces(() => carillon);
    const { promise: answer, resolve } = Promise.withResolvers<void>();
    receiver.respond(async () => {
      await answer;
      return {};
    });
    const job = await cron.call("createCronJob", { cron_expr: "@every 1h", url: `${receiver.url}/slow` });
    const until = new Date(Date.parse(job.next_run_at) + 3_600_000);
    const impatient = createClient(ClockService, createGrpcTransport({ baseUrl: carillon.url }));
    const request = { to: timestampFromDate(until) };
    const headers = { authorization: `Bearer ${TEST_KEY}` };
    const moved = await impatient.advanceClock(request, { timeoutMs: 2_000, headers });
    expect(moved).toMatchObject({ reached: false, settled: false, steps: 1, fires: 0 });
    expect(moved.now && timestampDate(moved.now).toISOString()).toBe(iso(job.next_run_at));
    resolve();
    expect(await advance(clock, until.toISOString())).toEqual({ steps: 1, fires: 2 });
    await cron.call("deleteCronJob", { cron_id: job.cron_id });
    receiver.respond({});
  });

  test("counts the fires of the caller's project", async () => {
    const [clock, cron] = restFaces(() => carillon);
    const job = await cron.call("createCronJob", { cron_expr: "@every 1h", url: `${receiver.url}/counted` });
    const other = await otherProject(carillon);
    const request = { seconds: 3_600 };
    expect(await clock.call("advanceClock", request, other)).toMatchObject({ steps: 1, fires: 0 });
    expect(await clock.call("advanceClock", request)).toMatchObject({ steps: 1, fires: 1 });
    await cron.call("deleteCronJob", { cron_id: job.cron_id });
  });
});

test("a year of cron jobs fires as the oracle says, each fire at its own instant", {
  timeout: sized(7_200_000, 600_000),
}, async () => {
  await using carillon = await startTestCarillon(VIRTUAL);
  await using receiver = await startReceiver();
  const clocks = serviceFaces(ClockService, () => carillon);
  const crons = serviceFaces(CronService, () => carillon);
  const [clock, cron] = restFaces(() => carillon);
  const year = new Date((await clock.call("getClock", {})).now).getUTCFullYear() + 1;
  const day = (month: number, date: number) => new Date(Date.UTC(year, month - 1, date));
  await advance(clock, day(1, 1).toISOString());

  // Those that fire more than daily have the days around the changes of their clocks; a year of them is for the preview, and
  // for a run at full size.
  const end = new Date(Date.UTC(year + 1, 0, 1));
  const asked = YEAR_SCHEDULES.flatMap((schedule) => {
    const isFrequent = oracleFires(schedule, day(1, 1), end).length > 366;
    if (!isFrequent || sized(1, 0) === 1) return [{ schedule, from: day(1, 1), to: end }];
    return offsetChanges(schedule.timezone, day(1, 1).getTime(), end.getTime()).map((change) => {
      const from = new Date(Math.floor(change / DAY_MS - 1) * DAY_MS);
      return { schedule, from, to: new Date(from.getTime() + 3 * DAY_MS) };
    });
  });
  const jobs = [];
  for (const { schedule, from, to } of asked) {
    const { cron_id: cronId } = await cron.call("createCronJob", {
      cron_expr: schedule.expression.text,
      timezone: schedule.timezone,
      dst_gap: schedule.rules.gap,
      dst_overlap: schedule.rules.overlap,
      start_at: new Date(from.getTime() + 1).toISOString(),
      end_at: to.toISOString(),
      retention_days: -1,
      url: `${receiver.url}/${jobs.length}`,
    });
    jobs.push({ cronId, path: `/${jobs.length}`, expected: oracleFires(schedule, from, to) });
  }

  const fires = [];
  for (const [half, face] of clocks.entries()) {
    const until = half === 0 ? day(7, 1) : end;
    fires.push((await advance(face, until.toISOString())).fires);
  }
  const expected = jobs.flatMap((job) => job.expected);
  expect(fires.reduce((sum, count) => sum + count)).toBe(expected.length);
  for (const { cronId, path, expected: fireTimes } of jobs) {
    for (const face of crons) {
      const ran = (await ledgerOf(face, cronId)).filter(({ disposition }) => disposition === "ran");
      expect(ran.map((run) => iso(run.scheduled_at))).toEqual(fireTimes);
      expect(ran.filter((run) => run.started_at !== run.scheduled_at || run.state !== "succeeded")).toEqual([]);
    }
    const received = receiver.requests.filter((request) => request.path === path);
    expect(received.map(({ headers }) => headers["carillon-scheduled-at"])).toEqual(fireTimes);
  }
});

describe("in real time", () => {
  let carillon: TestCarillon;
  beforeAll(async () => {
    carillon = await startTestCarillon();
  });
  afterAll(() => carillon[Symbol.asyncDispose]());

  test.each(serviceFaces(ClockService, () => carillon))(
    "a server's clock is only to be read, over $name",
    async (clock) => {
      const { virtual, next_at } = await clock.call("getClock", {});
      expect({ virtual, next_at }).toEqual({ virtual: false, next_at: undefined });
      await expect(clock.call("advanceClock", { seconds: 1 })).rejects.toMatchObject({ reason: "CLOCK_NOT_VIRTUAL" });
    },
  );

  test("a database that has been used takes no virtual clock", async () => {
    await using database = await testDatabase();
    await (await startTestCarillon({}, database))[Symbol.asyncDispose]();
    await expect(startTestCarillon(VIRTUAL, database)).rejects.toThrow("needs a database of its own");
  });
});

describe("a database with a virtual clock", () => {
  test("goes on where it stood, and tells the real time for good once it is served without one", async () => {
    await using database = await testDatabase();
    const nowOf = async (carillon: TestCarillon) => {
      const [clock] = restFaces(() => carillon);
      return Date.parse((await clock.call("getClock", {})).now);
    };
    let stoodAt = 0;
    {
      await using carillon = await startTestCarillon(VIRTUAL, database);
      stoodAt = (await nowOf(carillon)) + 400 * DAY_MS;
      const [clock] = restFaces(() => carillon);
      await advance(clock, new Date(stoodAt).toISOString());
    }
    {
      await using carillon = await startTestCarillon(VIRTUAL, database);
      expect(await nowOf(carillon)).toBe(stoodAt);
    }
    {
      await using carillon = await startTestCarillon({}, database);
      expect(Math.abs((await nowOf(carillon)) - Date.now())).toBeLessThan(60_000);
    }
    await expect(startTestCarillon(VIRTUAL, database)).rejects.toThrow("needs a database of its own");
  });

  test("is served by one process alone", async () => {
    await using carillon = await startTestCarillon(VIRTUAL);
    // The connection by which a process is known to serve is made beside its start.
    const wakeUps = async () => {
      const { rows } = await sql`
        select from pg_stat_activity where datname = current_database() and application_name = 'carillon wake-ups'`.execute(
        carillon.database.db,
      );
      return rows.length;
    };
    await expect.poll(wakeUps).toBe(1);
    for (const env of [VIRTUAL, {}]) {
      await expect(startTestCarillon(env, carillon.database)).rejects.toThrow("another Carillon serves this database");
    }
  });
});
