import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { oracleFires, YEAR_SCHEDULES } from "../domain/oracle-years.ts";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { ACME, otherProject } from "./calls.ts";
import { serviceFaces } from "./service-faces.ts";

// Without workers nothing fires, so that targets on the internet can be named.
let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

const iso = (time: string) => new Date(time).toISOString();

describe.each(serviceFaces(CronService, () => carillon))("over $name", (face) => {
  test("a preview shows the next fires, what the clock shows then, and the schedule in words", async () => {
    const answer = await face.call("previewCronJob", {
      cron_expr: "  30 2 * * mon-sun",
      timezone: "europe/berlin",
      after: "2026-03-27T12:00:00Z",
      count: 3,
    });
    expect(answer).toMatchObject({
      cron_expr: "30 2 * * MON-SUN",
      timezone: "Europe/Berlin",
      description: "at 02:30",
      warnings: [],
      skipped: [],
    });
    expect(answer.fires.map((fire: { fire_at: string }) => iso(fire.fire_at))).toEqual([
      "2026-03-28T01:30:00.000Z",
      "2026-03-29T01:30:00.000Z",
      "2026-03-30T00:30:00.000Z",
    ]);
    const [first, second] = answer.fires;
    expect(first).toMatchObject({ local_time: "2026-03-28T02:30:00+01:00", effective_at: first.fire_at });
    expect(first.dst_note).toBeUndefined();
    expect(second.local_time).toBe("2026-03-29T03:30:00+02:00");
    expect(second.dst_note).toContain("the clock skips 02:30:00");
  });

  test("a preview tells what the rule for gaps lets pass", async () => {
    const { fires, skipped } = await face.call("previewCronJob", {
      cron_expr: "0,30 2 * * *",
      timezone: "Europe/Berlin",
      dst_gap: "skip",
      after: "2026-03-28T12:00:00Z",
      count: 1,
    });
    expect(iso(fires[0].fire_at)).toBe("2026-03-30T00:00:00.000Z");
    expect(skipped).toMatchObject([{ count: 2 }]);
    expect(iso(skipped[0].from)).toBe("2026-03-29T01:00:00.000Z");
  });

  test.each(YEAR_SCHEDULES)(
    "a preview shows a year of $expression.text in $timezone as the oracle does",
    async (schedule) => {
      const [after, until] = ["2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z"];
      const { gap, overlap } = schedule.rules;
      const answer = await face.call("previewCronJob", {
        cron_expr: schedule.expression.text,
        timezone: schedule.timezone,
        dst_gap: gap,
        dst_overlap: overlap,
        after,
        until,
      });
      expect(answer.next_after).toBeUndefined();
      expect(answer.fires.map((fire: { fire_at: string }) => iso(fire.fire_at))).toEqual(
        oracleFires(schedule, new Date(after), new Date(until)),
      );
    },
  );

  test("a preview is read page by page, without a gap or a double at their borders", async () => {
    const asked = { cron_expr: "@hourly", until: "2027-01-05T00:00:00Z", count: 40 };
    const pages: string[][] = [];
    for (let after: string | undefined = "2027-01-01T00:00:00Z"; after !== undefined; ) {
      const { fires, next_after } = await face.call("previewCronJob", { ...asked, after });
      pages.push(fires.map((fire: { fire_at: string }) => iso(fire.fire_at)));
      after = next_after;
    }
    expect(pages.map(({ length }) => length)).toEqual([40, 40, 16]);
    const hours = Array.from({ length: 96 }, (_, hour) => new Date(Date.UTC(2027, 0, 1, hour + 1)).toISOString());
    expect(pages.flat()).toEqual(hours);
  });

  test("a preview of rare fires ends before it has cost much, and says where to go on", async () => {
    const answer = await face.call("previewCronJob", {
      cron_expr: "0 0 29 2 *",
      timezone: "Europe/Berlin",
      after: "2000-01-01T00:00:00Z",
      count: 10_000,
    });
    expect(answer.fires).toHaveLength(100);
    expect(answer.next_after).toBe(answer.fires.at(-1).fire_at);
  });

  test("a preview warns of what may surprise", async () => {
    const warningsOf = async (fields: object) => (await face.call("previewCronJob", { count: 1, ...fields })).warnings;
    expect(await warningsOf({ cron_expr: "0 0 13 * FRI" })).toEqual([expect.stringContaining("either matches")]);
    expect(await warningsOf({ cron_expr: "*/90 * * * *" })).toEqual([expect.stringContaining("once an hour")]);
    expect(await warningsOf({ cron_expr: "H * * * *", spread_seconds: 5 })).toHaveLength(2);
  });

  test("a preview of a stored job has its own hash, place and policies", async () => {
    const { cron_id, next_run_at } = await face.call("createCronJob", {
      cron_expr: "H H * * *",
      url: ACME,
      spread_seconds: 600,
      start_at: "2050-01-01T00:00:00Z",
    });
    const stored = await face.call("previewCronJob", { cron_id, count: 2 });
    expect(iso(stored.fires[0].fire_at)).toBe(iso(next_run_at));
    const delayOf = (fire: { fire_at: string; effective_at: string }) =>
      Date.parse(fire.effective_at) - Date.parse(fire.fire_at);
    expect(delayOf(stored.fires[0])).toBe(delayOf(stored.fires[1]));
    expect(stored.warnings).toEqual([]);
    const changed = { cron_id, cron_expr: "H H * * *", after: "2050-01-01T00:00:00Z", count: 1 };
    expect((await face.call("previewCronJob", changed)).fires[0].fire_at).toBe(stored.fires[0].fire_at);
    await expect(face.call("previewCronJob", { cron_id, timezone: "UTC" })).rejects.toMatchObject({
      fields: ["timezone"],
    });
  });

  test.each([
    [{}, "FIELD_INVALID"],
    [{ cron_expr: "61 * * * *" }, "CRON_EXPR_INVALID"],
    [{ cron_expr: "0 0 30 2 *" }, "CRON_EXPR_INVALID"],
    [{ cron_expr: "@daily", timezone: "Mars/Olympus" }, "TIMEZONE_INVALID"],
    [{ cron_expr: "@daily", count: 10_001 }, "FIELD_INVALID"],
    [{ cron_id: "cron_00000000000000000000000000" }, "CRON_JOB_NOT_FOUND"],
  ])("a preview of %j is refused", async (fields, reason) => {
    await expect(face.call("previewCronJob", fields)).rejects.toMatchObject({ reason });
  });
});

describe("the herd", () => {
  const herd = async (headers: { readonly authorization: string }, query = "") =>
    (await carillon.rest("GET", `/cron/herd${query}`, undefined, headers)).body;

  test("counts the fires of all active jobs of the project, bucket by bucket", async () => {
    const headers = await otherProject(carillon);
    const create = async (fields: object) =>
      (await carillon.rest("POST", "/cron/create", { url: ACME, ...fields }, headers)).body;
    for (let job = 0; job < 5; job++) await create({ cron_expr: "0 * * * *" });
    for (let job = 0; job < 5; job++) await create({ cron_expr: "0 * * * *", spread_seconds: 3_600 });
    const paused = await create({ cron_expr: "* * * * * *" });
    await carillon.rest("POST", `/cron/pause/${paused.cron_id}`, {}, headers);

    const { buckets, fires, peaks, cron_jobs, truncated, bucket_seconds } = await herd(headers, "?hours=2");
    expect({ bucket_seconds, cron_jobs, truncated }).toEqual({ bucket_seconds: 300, cron_jobs: 10, truncated: false });
    expect(buckets.length).toBeGreaterThanOrEqual(24);
    expect(buckets.reduce((sum: number, bucket: { fires: number }) => sum + bucket.fires, 0)).toBe(fires);
    expect(fires).toBeGreaterThanOrEqual(15);
    expect(fires).toBeLessThanOrEqual(20);
    expect(peaks[0].fires).toBeGreaterThanOrEqual(5);
    expect(Date.parse(peaks[0].at) % 3_600_000).toBe(0);
  });

  test("ends at its bound and says so", async () => {
    const headers = await otherProject(carillon);
    for (let job = 0; job < 2; job++) {
      await carillon.rest("POST", "/cron/create", { url: ACME, cron_expr: "* * * * * *" }, headers);
    }
    const answer = await herd(headers, "?hours=48&bucket_seconds=3600");
    expect(answer).toMatchObject({ truncated: true, fires: 200_000 });
  });

  test("sees no other project's jobs", async () => {
    expect(await herd(await otherProject(carillon))).toMatchObject({ fires: 0, cron_jobs: 0, peaks: [] });
  });
});
