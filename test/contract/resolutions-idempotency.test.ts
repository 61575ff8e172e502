import { sql } from "kysely";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import {
  ACME,
  consume,
  createCron,
  createQueue,
  FAR_AWAY,
  ok,
  otherProject,
  refused,
  refusedField,
  unique,
} from "./calls.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

describe("G5: idempotency keys", () => {
  const create = (body: object, headers: Record<string, string> = {}) =>
    carillon.rest("POST", "/cron/create", { schedule: FAR_AWAY, url: ACME, ...body }, headers);

  test("G5: in the body or the header; a repeat gets the stored answer and Idempotency-Replayed", async () => {
    const key = unique("key");
    const first = await create({ idempotency_key: key });
    expect(first.headers.get("idempotency-replayed")).toBeNull();
    for (const repeat of [
      await create({ idempotency_key: key }),
      await create({}, { "idempotency-key": key }),
      await create({ idempotency_key: key }, { "idempotency-key": key }),
    ]) {
      expect(repeat.text).toBe(first.text);
      expect(repeat.headers.get("idempotency-replayed")).toBe("true");
    }
  });

  test("G5: in the query, for calls without a body", async () => {
    const { cron_id } = await createCron(carillon);
    const path = `/cron/delete/${cron_id}?idempotency_key=${unique("key")}`;
    expect(ok(await carillon.rest("DELETE", path))).toEqual({ cron_id, deleted: true });
    const repeat = await carillon.rest("DELETE", path);
    expect(ok(repeat)).toEqual({ cron_id, deleted: true });
    expect(repeat.headers.get("idempotency-replayed")).toBe("true");
  });

  test("G5: body and header must agree", async () => {
    refusedField(await create({ idempotency_key: "a" }, { "idempotency-key": "b" }), "idempotency_key");
  });

  test("G5: the same key with another body is 422 IDEMPOTENCY_KEY_REUSED", async () => {
    const key = unique("key");
    ok(await create({ idempotency_key: key }));
    refused(await create({ idempotency_key: key, retries: 1 }), 422, "IDEMPOTENCY_KEY_REUSED");
  });

  test("G5: the order of members and second names make no other body", async () => {
    const key = unique("key");
    const first = ok(await create({ idempotency_key: key, headers: { a: "1", b: "2" }, retries: 2 }));
    const other = { retry: 2, headers: { b: "2", a: "1" }, task: ACME, cron_expr: FAR_AWAY, idempotency_key: key };
    expect(ok(await carillon.rest("POST", "/cron/create", other))).toEqual(first);
  });

  test("G5: the scope is project, operation and the resource of the path", async () => {
    const idempotency_key = unique("key");
    const one = ok(await create({ idempotency_key }));
    const elsewhere = ok(await create({ idempotency_key }, await otherProject(carillon)));
    expect(elsewhere.cron_id).not.toBe(one.cron_id);
    const another = await createCron(carillon);
    for (const { cron_id } of [one, another]) {
      for (const call of ["pause", "resume"]) {
        const answer = await carillon.rest("POST", `/cron/${call}/${cron_id}`, { idempotency_key });
        expect(ok(answer).cron_id).toBe(cron_id);
        expect(answer.headers.get("idempotency-replayed")).toBeNull();
      }
    }
  });

  test("G5: a refused call leaves its key free", async () => {
    const idempotency_key = unique("key");
    refusedField(await create({ idempotency_key, schedule: "no" }), "cron_expr", "CRON_EXPR_INVALID");
    ok(await create({ idempotency_key }));
  });

  test("G5: while the first call runs, a repeat waits a few seconds and then is a 409", async () => {
    const key = unique("key");
    await carillon.database.db.transaction().execute(async (first) => {
      await sql`
        insert into idempotency_keys (project_id, operation, resource, key, fingerprint, expires_at)
        select project_id, 'scheduling.v1.CronService/CreateCronJob', '', ${key}, ''::bytea, carillon_now() + interval '1 day'
        from projects where name = 'default'`.execute(first);
      refused(await create({ idempotency_key: key }), 409, "ABORTED", "IDEMPOTENCY_KEY_IN_USE");
    });
  });

  test("G5: a key is forgotten after 24 hours", async () => {
    const idempotency_key = unique("key");
    const first = ok(await create({ idempotency_key }));
    await carillon.database.advanceClock(86_399 - 60);
    expect(ok(await create({ idempotency_key })).cron_id).toBe(first.cron_id);
    await carillon.database.advanceClock(120);
    expect(ok(await create({ idempotency_key })).cron_id).not.toBe(first.cron_id);
  });

  test("G5: many calls at once with one key have one effect", async () => {
    const queue = await createQueue(carillon);
    const body = { queue, payload: { n: 1 }, idempotency_key: unique("key") };
    const answers = await Promise.all(Array.from({ length: 10 }, () => carillon.rest("POST", "/queue/publish", body)));
    expect(new Set(answers.map((answer) => ok(answer).message_id)).size).toBe(1);
    expect(await consume(carillon, queue)).toHaveLength(1);
  });
});
