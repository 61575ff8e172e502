import { randomBytes } from "node:crypto";
import { expect } from "vitest";
import { hashApiKey, newApiKey } from "../../src/domain/api-key.ts";
import { createApiKey } from "../../src/store/api-keys.ts";
import { ensureProject, type StrictSwitches, setStrictSwitches } from "../../src/store/projects.ts";
import type { RestAnswer, TestCarillon } from "../support/carillon.ts";
import { signsWith } from "../support/signing.ts";

// biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
type Json = any;

/** A schedule that no test lets come due, however far it moves the clock. */
export const FAR_AWAY = "0 0 0 1 1 * 2090";

/** An https target that passes the checks at creation. Nothing in a test may let it be dialled. */
export const ACME = "https://api.acme.com/weekly";

/** A name that no other test has. */
export function unique(prefix: string): string {
  return `${prefix}-${randomBytes(5).toString("hex")}`;
}

/** The body of an answer that must be a 200. */
export function ok(answer: RestAnswer): Json {
  expect(answer.status, answer.text).toBe(200);
  return answer.body;
}

/** Checks a refusal: the status, `error.code`, `error.reason` where one is given, and the shape of G11. Returns `error`. */
export function refused(
  answer: Pick<RestAnswer, "status" | "body">,
  status: number,
  code: string,
  reason?: string,
): Json {
  expect(answer.status, JSON.stringify(answer.body)).toBe(status);
  const { error } = answer.body;
  expect(error).toMatchObject({
    code,
    message: expect.stringMatching(/./),
    details: expect.any(Array),
    request_id: expect.stringMatching(/./),
  });
  if (reason !== undefined) expect(error.reason).toBe(reason);
  return error;
}

/** Checks a 400 for one field that broke a rule. Returns `error`. */
export function refusedField(
  answer: Pick<RestAnswer, "status" | "body">,
  field: string,
  reason = "FIELD_INVALID",
): Json {
  const error = refused(answer, 400, "INVALID_ARGUMENT", reason);
  expect(error.details.map((detail: { field: string }) => detail.field)).toContain(field);
  return error;
}

/** The warnings that came with an answer, one text. */
export function warning(answer: { readonly headers: Headers }): string {
  return answer.headers.get("x-scheduling-warning") ?? "";
}

/** Creates a cron job that fires in the far future. */
export async function createCron(carillon: TestCarillon, fields: object = {}): Promise<Json> {
  return ok(await carillon.rest("POST", "/cron/create", { cron_expr: FAR_AWAY, url: ACME, ...fields }));
}

/** Creates a queue with a name of its own and returns the name. */
export async function createQueue(carillon: TestCarillon, fields: object = {}): Promise<string> {
  return ok(await carillon.rest("POST", "/queue/create", { queue: unique("q"), ...fields })).queue;
}

/** Publishes one message and returns its id. */
export async function publish(carillon: TestCarillon, queue: string, fields: object = {}): Promise<string> {
  return ok(await carillon.rest("POST", "/queue/publish", { queue, payload: {}, ...fields })).message_id;
}

/** Consumes and returns the messages. */
export async function consume(carillon: TestCarillon, queue: string, fields: object = {}): Promise<Json[]> {
  return ok(await carillon.rest("POST", "/queue/consume", { queue, max_messages: 100, ...fields })).messages;
}

/** The headers that call as another project, which is made with these switches. */
export async function otherProject(
  carillon: TestCarillon,
  switches: StrictSwitches = {},
): Promise<{ readonly authorization: string }> {
  const { db } = carillon.database;
  const name = unique("project");
  const { project_id: projectId } = await ensureProject(db, name, signsWith());
  await setStrictSwitches(db, name, switches);
  const key = newApiKey();
  await createApiKey(db, { projectId, keyHash: hashApiKey(key), name: "test", hint: "" });
  return { authorization: `Bearer ${key}` };
}

/**
 * Asks again and again until the answer is as wanted, and returns it. Fails after `deadlineMs` with the last answer.
 */
export async function eventually<T>(
  ask: () => Promise<T>,
  isWanted: (answer: T) => boolean,
  deadlineMs = 20_000,
): Promise<T> {
  const endsAt = performance.now() + deadlineMs;
  for (;;) {
    const answer = await ask();
    if (isWanted(answer)) return answer;
    if (performance.now() > endsAt) throw new Error(`not so in ${deadlineMs} ms; last: ${JSON.stringify(answer)}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}
