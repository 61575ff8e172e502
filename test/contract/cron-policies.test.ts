import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { ACME, FAR_AWAY } from "./calls.ts";
import { serviceFaces } from "./service-faces.ts";

// Without workers nothing fires, so that targets on the internet can be named.
let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

describe.each(serviceFaces(CronService, () => carillon))("over $name", (face) => {
  const create = (fields: object = {}) => face.call("createCronJob", { cron_expr: FAR_AWAY, url: ACME, ...fields });

  test("the policies have the documented defaults", async () => {
    expect(await create()).toMatchObject({
      dst_gap: "run_after",
      dst_overlap: "auto",
      spread_seconds: 0,
      jitter_seconds: 0,
      overdue_fires: 0,
    });
    const job = await create();
    for (const field of ["start_grace_seconds", "finish_grace_seconds", "overdue_since", "overdue_reason"]) {
      expect(job[field]).toBeUndefined();
    }
  });

  test("what create takes, update changes, and a cleared field has its default again", async () => {
    const given = {
      dst_gap: "skip",
      dst_overlap: "twice",
      start_at: "2089-01-01T00:00:00.000Z",
      end_at: "2095-01-01T00:00:00.000Z",
      spread_seconds: 86_400,
      jitter_seconds: 60,
      expire_after_seconds: 30,
      pause_after_failures: 3,
      start_grace_seconds: 60,
      finish_grace_seconds: 600,
    };
    const job = await create(given);
    const instants = { start_at: expect.stringContaining("2089"), end_at: expect.stringContaining("2095") };
    expect(job).toMatchObject({ ...given, ...instants });
    expect(await face.call("updateCronJob", { cron_id: job.cron_id, dst_overlap: "once" })).toMatchObject({
      ...given,
      ...instants,
      dst_overlap: "once",
    });
  });

  test("the bounds of a schedule are instants at which it may still fire", async () => {
    const job = await create({ cron_expr: "0 0 * * *", start_at: "2050-05-05T00:00:00Z" });
    expect(new Date(job.next_run_at).toISOString()).toBe("2050-05-05T00:00:00.000Z");
    const moved = await face.call("updateCronJob", { cron_id: job.cron_id, start_at: "2051-05-05T00:00:01Z" });
    expect(new Date(moved.next_run_at).toISOString()).toBe("2051-05-06T00:00:00.000Z");
    const ended = await face.call("updateCronJob", { cron_id: job.cron_id, end_at: "2051-05-05T12:00:00Z" });
    expect(ended).toMatchObject({ state: "completed", enabled: false });
    expect(ended.next_run_at).toBeUndefined();
    const again = await face.call("updateCronJob", { cron_id: job.cron_id, end_at: "2051-05-06T00:00:00Z" });
    expect(again).toMatchObject({ state: "active", enabled: true });
  });

  test.each([
    [{ start_at: "2091-01-01T00:00:00Z" }, "start_at"],
    [{ end_at: "2089-12-31T23:59:59Z" }, "end_at"],
    [{ start_at: "2050-01-02T00:00:00Z", end_at: "2050-01-01T00:00:00Z" }, "end_at"],
    [{ spread_seconds: 86_401 }, "spread_seconds"],
    [{ jitter_seconds: -1 }, "jitter_seconds"],
    [{ expire_after_seconds: 0 }, "expire_after_seconds"],
    [{ pause_after_failures: 1001 }, "pause_after_failures"],
    [{ start_grace_seconds: 0 }, "start_grace_seconds"],
    [{ finish_grace_seconds: 31_536_001 }, "finish_grace_seconds"],
    [{ start_grace_seconds: 61, finish_grace_seconds: 60 }, "finish_grace_seconds"],
  ])("%j is refused", async (fields, field) => {
    await expect(create(fields)).rejects.toMatchObject({ fields: [field] });
  });

  test("an update that leaves the finish less time than the start is refused, whichever it writes", async () => {
    const { cron_id } = await create({ start_grace_seconds: 60, finish_grace_seconds: 90 });
    for (const fields of [{ start_grace_seconds: 91 }, { finish_grace_seconds: 59 }]) {
      const refused = expect.objectContaining({ reason: "FIELD_INVALID", fields: ["finish_grace_seconds"] });
      await expect(face.call("updateCronJob", { cron_id, ...fields })).rejects.toEqual(refused);
    }
    const both = { start_grace_seconds: 100, finish_grace_seconds: 100 };
    expect(await face.call("updateCronJob", { cron_id, ...both })).toMatchObject(both);
  });
});

test("null clears a policy over REST", async () => {
  const given = {
    dst_gap: "skip",
    spread_seconds: 5,
    end_at: "2095-01-01T00:00:00Z",
    expire_after_seconds: 9,
    finish_grace_seconds: 9,
  };
  const { body } = await carillon.rest("POST", "/cron/create", { cron_expr: FAR_AWAY, url: ACME, ...given });
  const cleared = {
    dst_gap: null,
    spread_seconds: null,
    end_at: null,
    expire_after_seconds: null,
    finish_grace_seconds: null,
  };
  const after = await carillon.rest("PATCH", `/cron/update/${body.cron_id}`, cleared);
  expect(after.body).toMatchObject({ dst_gap: "run_after", spread_seconds: 0 });
  expect(after.body).not.toHaveProperty("end_at");
  expect(after.body).not.toHaveProperty("expire_after_seconds");
  expect(after.body).not.toHaveProperty("finish_grace_seconds");
});
