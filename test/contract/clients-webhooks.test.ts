import { randomUUID } from "node:crypto";
import { Webhook } from "standardwebhooks";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ReceivedRequest } from "../support/receiver.ts";
import { projectSecret } from "../support/signing.ts";
import { newQueueName } from "./clients/flows.ts";
import { startWorld, type TestWorld } from "./clients/world.ts";

/** What follows the prefix is base64. */
const ENCODED_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const TEXT_SECRET = "correct horse battery staple";
const PAYLOAD = '{"big":9007199254740993, "text":"é"}';

let world: TestWorld;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(() => world?.[Symbol.asyncDispose]());

/** Verifies with the library, as a receiver that knows `secret` would. It throws when the signature is wrong. */
function verify({ headers, body }: Pick<ReceivedRequest, "headers" | "body">, secret: string): void {
  const webhook = secret.startsWith("whsec_") ? new Webhook(secret) : new Webhook(secret, { format: "raw" });
  webhook.verify(body, headers as Record<string, string>);
}

const SECRETS: readonly (readonly [string, string | undefined])[] = [
  ["a secret in base64", ENCODED_SECRET],
  ["a secret that is plain text", TEXT_SECRET],
  ["the project's secret", undefined],
];

/** Each makes Carillon POST the payload to `url` with that secret. */
const POSTS: readonly (readonly [string, (url: string, secret: object) => Promise<void>])[] = [
  [
    "a cron job",
    async (url, secret) => {
      const job = `{"cron_expr":"* * * * *","max_runs":1,"url":${JSON.stringify(url)},"payload":${PAYLOAD}`;
      await mustBeOk("/cron/create", job, secret);
      await world.database.advanceClock(61);
    },
  ],
  [
    "a task",
    async (url, secret) => {
      const task = `{"run_at":"2020-01-01T00:00:00Z","url":${JSON.stringify(url)},"payload":${PAYLOAD}`;
      await mustBeOk("/task/schedule", task, secret);
    },
  ],
  [
    "a push",
    async (url, secret) => {
      const queue = newQueueName();
      await mustBeOk(`/queue/push_subscribe/${queue}`, `{"url":${JSON.stringify(url)}`, secret);
      await mustBeOk("/queue/publish", `{"queue":"${queue}","payload":${PAYLOAD}`, {});
    },
  ],
];

/** `open` is an object without its closing brace, so that the payload's bytes stay as they are. */
async function mustBeOk(path: string, open: string, more: object): Promise<void> {
  const rest = Object.entries(more).map(([name, value]) => `,${JSON.stringify(name)}:${JSON.stringify(value)}`);
  const { status, text } = await world.carillon.rest("POST", path, `${open}${rest.join("")}}`);
  if (status !== 200) throw new Error(`${path} answered ${status}: ${text}`);
}

describe.each(POSTS)("the signature of %s", (_, makePost) => {
  test.each(SECRETS)("verifies with standardwebhooks and %s, and a changed byte does not", async (_name, given) => {
    const path = `/hook-${randomUUID()}`;
    await makePost(world.receiver.url + path, given === undefined ? {} : { secret: given });
    const request = await world.receiver.next((candidate) => candidate.path === path);
    const secret = given ?? (await projectSecret(world.database.db));

    expect(request.body.toString()).toBe(PAYLOAD);
    verify(request, secret);

    for (const index of [0, PAYLOAD.indexOf(" "), request.body.length - 1]) {
      const body = Buffer.from(request.body);
      body.writeUInt8(body.readUInt8(index) ^ 1, index);
      expect(() => verify({ ...request, body }, secret)).toThrow("No matching signature");
    }
    const headers = { ...request.headers, "webhook-id": `${request.headers["webhook-id"]}x` };
    expect(() => verify({ ...request, headers }, secret)).toThrow("No matching signature");
    expect(() => verify(request, "whsec_c29tZW9uZSBlbHNlJ3M=")).toThrow("No matching signature");
  });
});
