import type { DescService } from "@bufbuild/protobuf";
import { Webhook } from "standardwebhooks";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { EventService } from "../../gen/scheduling/v1/event_service_pb.js";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import type { ReceivedRequest } from "../support/receiver.ts";
import { projectSecret } from "../support/signing.ts";
import { eventually, ok, unique } from "./calls.ts";
import { type Endpoints, openEndpoints } from "./endpoints.ts";
import { serviceFaces } from "./service-faces.ts";

let carillon: TestCarillon;
let endpoints: Endpoints;
beforeAll(async () => {
  carillon = await startTestCarillon();
  endpoints = await openEndpoints();
});
afterAll(async () => {
  await carillon[Symbol.asyncDispose]();
  await endpoints[Symbol.asyncDispose]();
});

/** What has a secret of its own, and how it is made to send a request. */
interface Kind {
  readonly name: string;
  readonly service: DescService;
  readonly method: string;
  readonly id: string;
  readonly absent: string;
  readonly notFound: string;
  /** Without a secret: the project's, or a generated one. */
  create(url: string, secret?: string): Promise<string>;
  send(id: string): Promise<unknown>;
}

const secretOf = (secret?: string) => (secret === undefined ? {} : { secret });
const post = async (path: string, body: object = {}) => ok(await carillon.rest("POST", path, body));

const KINDS: readonly Kind[] = [
  {
    name: "a cron job",
    service: CronService,
    method: "rotateCronSecret",
    id: "cron_id",
    absent: "cron_00000000000000000000000000",
    notFound: "CRON_JOB_NOT_FOUND",
    create: async (url, secret) =>
      (await post("/cron/create", { name: unique("c"), cron_expr: "@yearly", url, ...secretOf(secret) })).cron_id,
    send: (id) => post(`/cron/trigger/${id}`, { overlap_policy: "allow" }),
  },
  {
    name: "a task",
    service: TaskService,
    method: "rotateTaskSecret",
    id: "task_id",
    absent: "task_00000000000000000000000000",
    notFound: "TASK_NOT_FOUND",
    create: async (url, secret) =>
      (
        await post("/task/schedule", {
          url,
          run_at: new Date(Date.now() + 86_400_000).toISOString(),
          ...secretOf(secret),
        })
      ).task_id,
    // The run before may be about to be recorded.
    send: (id) =>
      eventually(
        () => carillon.rest("POST", `/task/run_now/${id}`, {}),
        ({ status }) => status === 200,
      ),
  },
  {
    name: "an event webhook",
    service: EventService,
    method: "rotateEventWebhookSecret",
    id: "webhook_id",
    absent: "wh_00000000000000000000000000",
    notFound: "WEBHOOK_NOT_FOUND",
    create: async (url, secret) =>
      (await post("/webhook/create", { url, event_types: ["webhook.test"], ...secretOf(secret) })).webhook_id,
    send: (id) => post(`/webhook/test/${id}`),
  },
];

const FACES = KINDS.flatMap((kind) => serviceFaces(kind.service, () => carillon).map((face) => ({ kind, face })));

const OLD = "whsec_b2xkIHNlY3JldA==";

/** Which of the secrets the package of Standard Webhooks verifies a request with. */
function signersAmong(request: ReceivedRequest, secrets: Readonly<Record<string, string>>): string[] {
  return Object.keys(secrets).filter((name) => {
    try {
      new Webhook(secrets[name] ?? "").verify(request.body.toString(), request.headers as Record<string, string>);
      return true;
    } catch {
      return false;
    }
  });
}

describe.each(FACES)("the secret of $kind.name, rotated over $face.name", ({ kind, face }) => {
  const rotate = (id: string, request: object = {}) => face.call(kind.method, { [kind.id]: id, ...request });

  test("signs beside the one before until the overlap ends", async () => {
    const hook = endpoints.open();
    const id = await kind.create(hook.url, OLD);
    const rotated = await rotate(id, { overlap_seconds: 35 });
    expect(rotated).toMatchObject({ [kind.id]: id, secret: expect.stringMatching(/^whsec_/) });
    const secrets = { old: OLD, new: rotated.secret };
    await kind.send(id);
    expect(signersAmong(await hook.next(), secrets)).toEqual(["old", "new"]);
    await carillon.database.advanceClock(36);
    await kind.send(id);
    expect(signersAmong(await hook.next(), secrets)).toEqual(["new"]);
  });

  test("overlaps for a day unless the call says how long, and is shown only where it was generated", async () => {
    const id = await kind.create(endpoints.open().url, OLD);
    const secondsLeft = async (time: string) =>
      Math.round((Date.parse(time) - (await carillon.database.now()).getTime()) / 100_000) * 100;
    expect(await secondsLeft((await rotate(id)).previous_valid_until)).toBe(86_400);
    const given = await rotate(id, { secret: "of the caller", overlap_seconds: 604_800 });
    expect(given.secret).toBeUndefined();
    expect(await secondsLeft(given.previous_valid_until)).toBe(604_800);
  });

  test("ends no overlap when it is made the current one again", async () => {
    const hook = endpoints.open();
    const id = await kind.create(hook.url, OLD);
    const secret = "whsec_bmV3IHNlY3JldA==";
    await rotate(id, { secret });
    for (let n = 0; n < 5; n++) expect(await rotate(id, { secret })).toEqual({ [kind.id]: id });
    await kind.send(id);
    const request = await hook.next();
    expect(signersAmong(request, { old: OLD, new: secret })).toEqual(["old", "new"]);
    expect(String(request.headers["webhook-signature"]).split(" ")).toHaveLength(2);
  });

  test("is rotated once by a call and its repeat", async () => {
    const id = await kind.create(endpoints.open().url);
    const request = { idempotency_key: unique("once") };
    expect(await rotate(id, request)).toEqual(await rotate(id, request));
  });

  test("is refused where there is nothing to rotate, or the secret or the overlap is none", async () => {
    const id = await kind.create(endpoints.open().url);
    await expect(rotate(kind.absent)).rejects.toMatchObject({ reason: kind.notFound });
    await expect(rotate("nonsense")).rejects.toMatchObject({ reason: kind.notFound });
    for (const overlap_seconds of [-1, 604_801]) {
      const refusal = { reason: "FIELD_INVALID", fields: ["overlap_seconds"] };
      await expect(rotate(id, { overlap_seconds })).rejects.toMatchObject(refusal);
    }
    for (const secret of ["whsec_!", "whsk_AAAA"]) {
      await expect(rotate(id, { secret })).rejects.toMatchObject({ reason: "FIELD_INVALID", fields: ["secret"] });
    }
  });
});

test.each(KINDS.slice(0, 2))(
  "$name without a secret of its own is signed by its project's beside the new one",
  async (kind) => {
    const hook = endpoints.open();
    const id = await kind.create(hook.url);
    const [face = expect.fail()] = serviceFaces(kind.service, () => carillon);
    const { secret } = await face.call(kind.method, { [kind.id]: id });
    await kind.send(id);
    const secrets = { project: await projectSecret(carillon.database.db), own: secret };
    expect(signersAmong(await hook.next(), secrets)).toEqual(["project", "own"]);
  },
);

test("a failure that is told of is signed by both secrets of the cron job, too", async () => {
  const failing = endpoints.open();
  const told = endpoints.open();
  failing.respond({ status: 500 });
  const job = { name: unique("c"), cron_expr: "@yearly", url: failing.url, secret: OLD, retries: 0 };
  const { cron_id } = await post("/cron/create", { ...job, on_failure_webhook: told.url });
  const { secret } = await post(`/cron/rotate_secret/${cron_id}`);
  await post(`/cron/trigger/${cron_id}`);
  expect(signersAmong(await told.next(), { old: OLD, new: secret })).toEqual(["old", "new"]);
});
