import { createPublicKey, type JsonWebKey, verify as verifySignature } from "node:crypto";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { Webhook as StandardWebhook } from "standardwebhooks";
import { Webhook as SvixWebhook } from "svix";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { JwksService, SigningService } from "../../gen/scheduling/v1/signing_service_pb.js";
import { verify } from "../../src/webhook/sign.ts";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import type { ReceivedRequest } from "../support/receiver.ts";
import { projectSecret } from "../support/signing.ts";
import { eventually, ok, otherProject, refused, unique } from "./calls.ts";
import { type Endpoint, type Endpoints, openEndpoints } from "./endpoints.ts";
import { type ServiceFace, serviceFaces } from "./service-faces.ts";

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

const ABSENT = "sigk_00000000000000000000000000";
const refusal = (reason: string) => expect.objectContaining({ reason });

type Asker = Readonly<Record<string, string>>;
interface Jwk {
  readonly kid: string;
  readonly kty: string;
  readonly crv: string;
  readonly x: string;
}

/** Where the key set of the caller's project is. */
async function keySetUrl(asker: Asker = {}): Promise<string> {
  const { jwks_path } = ok(await carillon.rest("GET", "/signing/list", undefined, asker));
  return carillon.url + jwks_path;
}

async function keySet(asker: Asker = {}): Promise<Jwk[]> {
  const response = await fetch(await keySetUrl(asker));
  expect(response.status).toBe(200);
  return ((await response.json()) as { keys: Jwk[] }).keys;
}

/** Has a task deliver to the endpoint and returns the request. */
async function delivered(hook: Endpoint, asker: Asker = {}): Promise<ReceivedRequest> {
  const task = { url: hook.url, payload: { n: 1 }, run_at: "2020-01-01T00:00:00Z" };
  ok(await carillon.rest("POST", "/task/schedule", task, asker));
  return hook.next();
}

/** The database's clock signs, which tests move. */
const nowOf = ({ headers }: ReceivedRequest) => ({ nowSeconds: Number(headers["webhook-timestamp"]) });
const schemesOf = ({ headers }: ReceivedRequest) =>
  String(headers["webhook-signature"])
    .split(" ")
    .map((signature) => signature.split(",")[0]);

describe.each(serviceFaces(SigningService, () => carillon))("a project's keys over $name", (face: ServiceFace) => {
  test("are a secret from the start, and a key pair as soon as one is made", async () => {
    const mine = await otherProject(carillon);
    const before = await face.call("listSigningKeys", {}, mine);
    expect(before.items).toMatchObject([
      { key_id: expect.stringMatching(/^sigk_/), algorithm: "v1", created_at: expect.any(String) },
    ]);
    expect(before.items[0].public_key).toBeUndefined();
    expect(before.jwks_path).toMatch(/^\/v1\/scheduling\/jwks\/get\/prj_[0-9A-Z]{26}$/);

    const made = await face.call("rotateKey", {}, mine);
    expect(made).toMatchObject({ algorithm: "v1a", public_key: expect.stringMatching(/^whpk_[\w+/]{43}=$/) });
    expect(made.valid_until).toBeUndefined();
    expect((await face.call("listSigningKeys", {}, mine)).items[0]).toEqual(made);
    const first = await face.call("listSigningKeys", { limit: 1 }, mine);
    const second = await face.call("listSigningKeys", { limit: 1, cursor: first.next_cursor }, mine);
    expect([first.items[0], second.items[0]]).toEqual([made, before.items[0]]);
  });

  test("are replaced with an overlap of a day, or of what is asked for up to a week", async () => {
    const mine = await otherProject(carillon);
    const now = (await carillon.database.now()).getTime();
    const secondsUntil = (time: string) => Math.round((Date.parse(time) - now) / 100_000) * 100;
    const rotated = await face.call("rotateSecret", {}, mine);
    expect(rotated).toMatchObject({
      secret: expect.stringMatching(/^whsec_/),
      key_id: expect.stringMatching(/^sigk_/),
    });
    expect(secondsUntil(rotated.previous_valid_until)).toBe(86_400);
    const given = await face.call("rotateSecret", { secret: "sixteen characters", overlap_seconds: 604_800 }, mine);
    expect(given.secret).toBeUndefined();
    expect(secondsUntil(given.previous_valid_until)).toBe(604_800);
    await face.call("rotateKey", {}, mine);
    await face.call("rotateKey", { overlap_seconds: 3_600 }, mine);
    const { items } = await face.call("listSigningKeys", {}, mine);
    expect(items.map(({ algorithm }: { algorithm: string }) => algorithm)).toEqual(["v1a", "v1a", "v1", "v1", "v1"]);
    expect(secondsUntil(items[1].valid_until)).toBe(3_600);
  });

  test("stay what they are when a call is repeated with its idempotency key", async () => {
    const mine = await otherProject(carillon);
    for (const method of ["rotateSecret", "rotateKey"]) {
      const request = { idempotency_key: unique("once") };
      expect(await face.call(method, request, mine)).toEqual(await face.call(method, request, mine));
    }
    expect((await face.call("listSigningKeys", {}, mine)).items).toHaveLength(3);
  });

  test("end when they are told to, but for the current secret", async () => {
    const mine = await otherProject(carillon);
    await face.call("rotateSecret", {}, mine);
    const pair = await face.call("rotateKey", {}, mine);
    const [, current, previous] = (await face.call("listSigningKeys", {}, mine)).items;
    const end = (key_id: string, asker: Asker = mine) => face.call("endSigningKey", { key_id }, asker);
    await expect(end(current.key_id)).rejects.toEqual(refusal("SIGNING_SECRET_CURRENT"));
    await expect(end(previous.key_id, {})).rejects.toEqual(refusal("SIGNING_KEY_NOT_FOUND"));
    await expect(end(ABSENT)).rejects.toEqual(refusal("SIGNING_KEY_NOT_FOUND"));
    await expect(end("nonsense")).rejects.toEqual(refusal("SIGNING_KEY_NOT_FOUND"));
    expect(await end(previous.key_id)).toEqual({ key_id: previous.key_id, ended: true });
    expect(await end(pair.key_id)).toEqual({ key_id: pair.key_id, ended: true });
    expect((await face.call("listSigningKeys", {}, mine)).items).toEqual([current]);
  });

  test("are refused with an overlap beyond a week, or a secret that is none", async () => {
    for (const request of [{ overlap_seconds: 604_801 }, { overlap_seconds: -1 }]) {
      for (const method of ["rotateSecret", "rotateKey"]) {
        await expect(face.call(method, request)).rejects.toEqual(refusal("FIELD_INVALID"));
      }
    }
    for (const secret of ["whsec_!", "whsk_AAAA", "whpk_AAAA"]) {
      await expect(face.call("rotateSecret", { secret })).rejects.toEqual(refusal("FIELD_INVALID"));
    }
  });
});

describe("the key set", () => {
  test("is for anybody, may be cached, and holds the public keys alone", async () => {
    const mine = await otherProject(carillon);
    expect(await keySet(mine)).toEqual([]);
    const pair = ok(await carillon.rest("POST", "/signing/rotate_key", {}, mine));
    const response = await fetch(await keySetUrl(mine));
    expect(response.headers.get("cache-control")).toBe("public, max-age=300");
    expect(response.headers.get("content-type")).toMatch(/^application\/json/);
    const keys = await eventually(
      () => keySet(mine),
      (set) => set.length > 0,
    );
    const x = Buffer.from(pair.public_key.slice("whpk_".length), "base64").toString("base64url");
    expect(keys).toEqual([{ kty: "OKP", crv: "Ed25519", x, kid: pair.key_id, use: "sig", alg: "EdDSA" }]);
    expect(createPublicKey({ format: "jwk", key: keys[0] as unknown as JsonWebKey }).asymmetricKeyType).toBe("ed25519");
  });

  test("comes over gRPC too, without an API key", async () => {
    const client = createClient(JwksService, createGrpcTransport({ baseUrl: carillon.url }));
    const projectId = (await keySetUrl()).split("/").at(-1) ?? "";
    expect((await client.getJwks({ projectId })).keys).toEqual([]);
  });

  test.each(["prj_00000000000000000000000000", "prj_x", "cron_00000000000000000000000000"])(
    "of %s does not exist",
    async (id) => {
      const response = await fetch(`${carillon.url}/v1/scheduling/jwks/get/${id}`);
      refused({ status: response.status, body: await response.json() }, 404, "NOT_FOUND", "KEY_SET_NOT_FOUND");
      expect(response.headers.get("cache-control")).toBeNull();
    },
  );
});

describe("a delivery", () => {
  test("is signed as v1 alone until the project has a key pair, and as both from then on", async () => {
    const mine = await otherProject(carillon);
    const hook = endpoints.open();
    expect(schemesOf(await delivered(hook, mine))).toEqual(["v1"]);
    const pair = ok(await carillon.rest("POST", "/signing/rotate_key", {}, mine));
    const request = await delivered(hook, mine);
    expect(schemesOf(request)).toEqual(["v1", "v1a"]);
    expect(verify(request.headers, request.body, pair.public_key, nowOf(request))).toBe(true);
    ok(await carillon.rest("POST", `/signing/end/${pair.key_id}`, {}, mine));
    expect(schemesOf(await delivered(hook, mine))).toEqual(["v1"]);
  });

  test("is verified by the standardwebhooks and svix packages among signatures of old secrets and key pairs", async () => {
    const hook = endpoints.open();
    const old = await projectSecret(carillon.database.db);
    const { secret } = ok(await carillon.rest("POST", "/signing/rotate_secret", {}));
    for (const overlap_seconds of [0, 3_600])
      ok(await carillon.rest("POST", "/signing/rotate_key", { overlap_seconds }));
    const { headers, body, ...request } = await delivered(hook);
    expect(schemesOf({ headers, body, ...request })).toEqual(["v1", "v1", "v1a", "v1a"]);
    const given = headers as Record<string, string>;
    for (const known of [old, secret]) {
      for (const Webhook of [StandardWebhook, SvixWebhook]) {
        expect(() => new Webhook(known).verify(body.toString(), given)).not.toThrow();
        expect(() => new Webhook(known).verify(`${body} `, given)).toThrow();
      }
    }
    const unknown = `whsec_${Buffer.alloc(24).toString("base64")}`;
    expect(() => new SvixWebhook(unknown).verify(body.toString(), given)).toThrow();
  });

  test("under a replaced secret or key pair is signed by both until the overlap ends", async () => {
    const mine = await otherProject(carillon);
    const hook = endpoints.open();
    const rotate = async (what: string) =>
      ok(await carillon.rest("POST", `/signing/${what}`, { overlap_seconds: 60 }, mine));
    const [first, second] = [await rotate("rotate_key"), await rotate("rotate_key")];
    const { secret } = await rotate("rotate_secret");
    const request = await delivered(hook, mine);
    expect(schemesOf(request)).toEqual(["v1", "v1", "v1a", "v1a"]);
    for (const key of [first.public_key, second.public_key, secret]) {
      expect(verify(request.headers, request.body, key, nowOf(request))).toBe(true);
    }
    await carillon.database.advanceClock(61);
    const later = await delivered(hook, mine);
    expect(schemesOf(later)).toEqual(["v1", "v1a"]);
    expect(verify(later.headers, later.body, first.public_key, nowOf(later))).toBe(false);
    expect(verify(later.headers, later.body, second.public_key, nowOf(later))).toBe(true);
  });
});

/** A receiver's verifier that knows the key set's address and nothing else. It asks again where no key fits. */
function keySetVerifier(url: string) {
  let keys: Promise<Jwk[]> | undefined;
  let fetched = 0;
  const fetchKeys = async (): Promise<Jwk[]> => {
    fetched += 1;
    return ((await (await fetch(url)).json()) as { keys: Jwk[] }).keys;
  };
  const fits = (known: readonly Jwk[], { headers, body }: ReceivedRequest): boolean => {
    const signed = Buffer.concat([Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.`), body]);
    return String(headers["webhook-signature"])
      .split(" ")
      .filter((signature) => signature.startsWith("v1a,"))
      .some((signature) =>
        known.some(({ kty, crv, x }) =>
          verifySignature(
            null,
            signed,
            createPublicKey({ format: "jwk", key: { kty, crv, x } }),
            Buffer.from(signature.slice(4), "base64"),
          ),
        ),
      );
  };
  return {
    fetched: () => fetched,
    async isGenuine(request: ReceivedRequest): Promise<boolean> {
      keys ??= fetchKeys();
      if (fits(await keys, request)) return true;
      keys = fetchKeys();
      return fits(await keys, request);
    },
  };
}

/** The states of the project's tasks. */
async function taskStates(asker: Asker): Promise<string[]> {
  const { items } = ok(await carillon.rest("GET", "/task/list?limit=100", undefined, asker));
  return items.map(({ state }: { state: string }) => state);
}

test("a receiver that knows only the key set survives two rotations with deliveries in flight, and the end of the old keys", async () => {
  const mine = await otherProject(carillon);
  const hook = endpoints.open();
  const rotate = async () => ok(await carillon.rest("POST", "/signing/rotate_key", { overlap_seconds: 3_600 }, mine));
  await rotate();
  const verifier = keySetVerifier(await keySetUrl(mine));
  const verdicts: boolean[] = [];
  // Slow, so that some are under way whenever a key changes; a third of them is refused.
  hook.respond(async (request, index) => {
    await new Promise((resolve) => setTimeout(resolve, 20));
    verdicts.push(await verifier.isGenuine(request));
    return index % 3 === 0 ? { status: 500 } : {};
  });
  const deliver = async (count: number) => {
    for (let i = 0; i < count; i++) {
      const task = { url: hook.url, payload: { i }, run_at: "2020-01-01T00:00:00Z", retries: 0 };
      ok(await carillon.rest("POST", "/task/schedule", task, mine));
    }
  };
  await deliver(20);
  // The receiver has the first key, and that alone, before there is another.
  await eventually(
    async () => verdicts.length,
    (count) => count > 0,
  );
  await Promise.all([rotate(), deliver(20)]);
  await Promise.all([rotate(), deliver(20)]);
  // Recorded, all of them: the clock would take one that is still under way for lost, and have it made again.
  await eventually(
    () => taskStates(mine),
    (states) => states.length === 60 && states.every((state) => state === "succeeded" || state === "failed"),
  );
  expect(verdicts).toHaveLength(60);
  await carillon.database.advanceClock(3_700);
  // The new set is to be seen before the old keys are gone for whoever has to ask.
  await eventually(
    () => keySet(mine),
    (keys) => keys.length === 1,
  );
  await deliver(5);
  await eventually(
    async () => verdicts.length,
    (count) => count === 65,
  );
  expect(verdicts.filter((isGenuine) => !isGenuine)).toEqual([]);
  expect(verifier.fetched()).toBe(2);
});
