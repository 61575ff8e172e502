import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { ACME, createCron, eventually, ok } from "./calls.ts";
import { serviceFaces } from "./service-faces.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon();
});
afterAll(() => carillon[Symbol.asyncDispose]());

describe.each(serviceFaces(CronService, () => carillon))("over $name", (face) => {
  /** A job whose fires of the last hour were missed, with the id of the first record. */
  async function missedJob(): Promise<{ readonly cron_id: string; readonly run_id: string; readonly at: string }> {
    const fields = { cron_expr: "30 * * * *", url: ACME, misfire_policy: "skip", retries: 0 };
    const { cron_id, next_run_at } = await face.call("createCronJob", fields);
    const waitMs = Date.parse(next_run_at) - (await carillon.database.now()).getTime();
    await carillon.database.advanceClock(waitMs / 1_000 + 60);
    const { items } = await eventually(
      () => face.call("listCronRuns", { cron_id }),
      (page) => page.items.length === 1,
    );
    return { cron_id, run_id: items[0].run_id, at: next_run_at };
  }

  test("the ledger of a job shows what did not run, and filters by what became of it", async () => {
    const { cron_id, run_id } = await missedJob();
    const missed = await face.call("listCronRuns", { cron_id, disposition: "missed" });
    expect(missed.items).toMatchObject([{ run_id, state: "missed", disposition: "missed", fire_count: 1 }]);
    expect((await face.call("listCronRuns", { cron_id, disposition: "ran" })).items).toEqual([]);
    expect((await face.call("listCronRuns", { cron_id, state: "missed", limit: 1 })).items).toHaveLength(1);
    const all = ok(await carillon.rest("GET", `/run/list?cron_id=${cron_id}&disposition=missed`));
    expect(all.items).toMatchObject([{ run_id }]);
  });

  test("a fire that was missed runs when it is asked for, once for each idempotency key", async () => {
    const { cron_id, run_id } = await missedJob();
    const asked = { cron_id, run_id, idempotency_key: run_id };
    const run = await face.call("runCronRun", asked);
    expect(run).toMatchObject({ run_id, trigger: "backfill", disposition: "caught_up" });
    expect(await face.call("runCronRun", asked)).toMatchObject({ run_id });
    await expect(face.call("runCronRun", { cron_id, run_id })).rejects.toMatchObject({ reason: "RUN_NOT_RUNNABLE" });
  });

  test("an instant is explained", async () => {
    const { cron_id, at } = await missedJob();
    const missed = await face.call("explainCronFire", { cron_id, at });
    expect(missed).toMatchObject({ due: true, disposition: "missed", run: { state: "missed" } });
    expect(missed.explanation).toContain("no node could act in time");
    const later = new Date(Date.parse(at) + 60_000).toISOString();
    const nothing = await face.call("explainCronFire", { cron_id, at: later });
    expect(nothing).toMatchObject({ due: false, explanation: "nothing was due" });
    expect(Date.parse(nothing.next_fire_at)).toBe(Date.parse(at) + 3_600_000);
  });

  test("a backfill is counted, started, watched, listed and called off", async () => {
    const { cron_id } = await createCron(carillon, { cron_expr: "0 0 * * *" });
    const since = new Date((await carillon.database.now()).getTime() - 3 * 86_400_000).toISOString();
    expect(await face.call("startCronBackfill", { cron_id, since, dry_run: true })).toMatchObject({ matched: 3 });
    const asked = { cron_id, since, overlap_policy: "allow", runs_per_second: 1, idempotency_key: cron_id };
    const { backfill, matched } = await face.call("startCronBackfill", asked);
    expect(matched).toBe(3);
    expect(backfill).toMatchObject({ cron_id, state: "running", overlap_policy: "allow", runs_per_second: 1 });
    expect((await face.call("startCronBackfill", asked)).backfill).toMatchObject({ backfill_id: backfill.backfill_id });
    const { backfill_id } = backfill;
    await expect(face.call("startCronBackfill", { cron_id, since })).rejects.toMatchObject({
      reason: "BACKFILL_RUNNING",
    });
    expect(await face.call("getCronBackfill", { backfill_id })).toMatchObject({ backfill_id, matched: 3 });
    expect((await face.call("listCronBackfills", { cron_id })).items).toMatchObject([{ backfill_id }]);
    expect(await face.call("cancelCronBackfill", { backfill_id })).toMatchObject({ state: "canceled" });
    await face.call("deleteCronJob", { cron_id });
    for (const wrong of [{ since: "2100-01-01T00:00:00Z" }, { since, until: "2100-01-01T00:00:00Z" }, {}]) {
      const job = await createCron(carillon, { cron_expr: "0 0 * * *" });
      await expect(face.call("startCronBackfill", { cron_id: job.cron_id, ...wrong })).rejects.toMatchObject({
        reason: "FIELD_INVALID",
      });
    }
  });

  test("a pause carries its reason until it ends", async () => {
    const { cron_id } = await createCron(carillon);
    expect(await face.call("pauseCronJob", { cron_id, reason: "moving" })).toMatchObject({ pause_reason: "moving" });
    expect((await face.call("resumeCronJob", { cron_id })).pause_reason).toBeUndefined();
  });
});
