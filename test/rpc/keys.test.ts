import { Code, ConnectError, createClient, createRouterTransport } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { Health } from "../../gen/grpc/health/v1/health_pb.js";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { apiKeyHint, hashApiKey, isMistyped, newApiKey } from "../../src/domain/api-key.ts";
import { type Principal, principalKey } from "../../src/rpc/context.ts";
import { type KeyGateOptions, keyGate } from "../../src/rpc/key-gate.ts";
import { OPEN_SERVICES } from "../../src/rpc/routes.ts";
import { createApiKey, findKeyOwner, listApiKeys, revokeApiKey } from "../../src/store/api-keys.ts";
import { ensureProject, setStrictSwitches } from "../../src/store/projects.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { signsWith } from "../support/signing.ts";

describe("an API key", () => {
  test("begins with crl_ and has 36 more characters, of which the last six check it", () => {
    for (let i = 0; i < 200; i++) {
      const key = newApiKey();
      expect(key).toMatch(/^crl_[0-9A-Za-z]{36}$/);
      expect(isMistyped(key)).toBe(false);
    }
  });

  test("with any one character changed is recognised as mistyped", () => {
    const key = newApiKey();
    for (let i = 4; i < key.length; i++) {
      const other = key[i] === "a" ? "b" : "a";
      expect(isMistyped(key.slice(0, i) + other + key.slice(i + 1))).toBe(true);
    }
  });

  test("the check characters are the CRC-32 of what stands before them, in base 62", () => {
    // zlib's crc32 of the first 34 characters is 0xe8022fd3.
    expect(newApiKey((size) => new Uint8Array(size))).toBe(`crl_${"0".repeat(30)}4FQLzP`);
  });

  test("uses every character alike: bytes that would favour some are thrown away", () => {
    // 246 and 247 are the last two characters; the eight bytes above them count for nothing, 0 and 1 are the first two.
    let next = 246;
    expect(newApiKey((size) => Uint8Array.from({ length: size }, () => next++ % 256)).slice(4, 8)).toBe("yz01");
  });

  test("another opaque text is not mistyped, only unknown", () => {
    for (const text of ["dev", "sk_live_123", "crl_short", `crl_${"é".repeat(36)}`])
      expect(isMistyped(text)).toBe(false);
  });

  test("the hint gives away at most a third of a short key", () => {
    expect(apiKeyHint(newApiKey())).toMatch(/^crl_.{4}…$/);
    expect(apiKeyHint("dev")).toBe("d…");
  });
});

const principal: Principal = { projectId: "project-1", strictFields: false, strictPathBody: false };

/** A service behind the gate; `bodyRead` says whether a handler ever saw a message. */
function serve(options: Partial<KeyGateOptions>) {
  const seen: (Principal | undefined)[] = [];
  const gate = keyGate({ findPrincipal: async () => principal, openServices: OPEN_SERVICES, ...options });
  const transport = createRouterTransport(
    (router) => {
      router.service(QueueService, {
        getQueue: (_, ctx) => {
          seen.push(ctx.values.get(principalKey));
          return {};
        },
      });
      router.service(Health, { check: () => ({}) });
    },
    { router: { requestGate: gate } },
  );
  const client = createClient(QueueService, transport);
  const call = (authorization?: string) =>
    client.getQueue({ queue: "q" }, authorization === undefined ? {} : { headers: { authorization } }).then(
      () => "ok",
      (error: unknown) => {
        const { code } = ConnectError.from(error);
        return `${Code[code]} ${ConnectError.from(error).findDetails(ErrorInfoSchema)[0]?.reason}`;
      },
    );
  return { call, seen, health: createClient(Health, transport) };
}

describe("the key gate", () => {
  test("lets a known key in and leaves its principal for the handler", async () => {
    const service = serve({});
    expect(await service.call("Bearer some-key")).toBe("ok");
    expect(await service.call("bearer   some-key ")).toBe("ok");
    expect(service.seen).toEqual([principal, principal]);
  });

  test.each([
    [undefined, "API_KEY_MISSING"],
    ["", "API_KEY_MISSING"],
    ["Bearer", "AUTHORIZATION_INVALID"],
    ["Bearer ", "AUTHORIZATION_INVALID"],
    ["some-key", "AUTHORIZATION_INVALID"],
    ["Basic dXNlcjpwYXNz", "AUTHORIZATION_INVALID"],
    ["Bearer a, Bearer b", "AUTHORIZATION_INVALID"],
    ["Bearer a b", "AUTHORIZATION_INVALID"],
    ["Bearer ÿÿÿ", "AUTHORIZATION_INVALID"],
    [`Bearer ${"x".repeat(4_096)}`, "AUTHORIZATION_INVALID"],
  ])("refuses the header %j as %s, without asking the database", async (header, reason) => {
    let asked = 0;
    const service = serve({
      findPrincipal: async () => {
        asked += 1;
        return principal;
      },
    });
    expect(await service.call(header)).toBe(`Unauthenticated ${reason}`);
    expect(asked).toBe(0);
    expect(service.seen).toEqual([]);
  });

  test("refuses a mistyped key without asking the database, unless it is the development key", async () => {
    const mistyped = `${newApiKey().slice(0, -6)}aaaaaa`;
    expect(await serve({}).call(`Bearer ${mistyped}`)).toBe("Unauthenticated API_KEY_INVALID");
    expect(await serve({ developmentKey: mistyped }).call(`Bearer ${mistyped}`)).toBe("ok");
  });

  test("needs no key for health", async () => {
    await serve({}).health.check({});
  });

  test("remembers a key for 5 seconds, so that a revocation is seen by then", async () => {
    let now = 0;
    let known: Principal | undefined = principal;
    let asked = 0;
    const service = serve({
      now: () => now,
      findPrincipal: async () => {
        asked += 1;
        return known;
      },
    });
    expect(await service.call("Bearer k")).toBe("ok");
    known = undefined;
    now = 4_999;
    expect(await service.call("Bearer k")).toBe("ok");
    now = 5_000;
    expect(await service.call("Bearer k")).toBe("Unauthenticated API_KEY_INVALID");
    known = principal;
    now = 10_000;
    expect(await service.call("Bearer k")).toBe("ok");
    expect(asked).toBe(3);
  });

  test("asks once for calls that come together", async () => {
    let asked = 0;
    const answer = Promise.withResolvers<Principal>();
    const service = serve({
      findPrincipal: () => {
        asked += 1;
        return answer.promise;
      },
    });
    const calls = Array.from({ length: 20 }, () => service.call("Bearer k"));
    await expect.poll(() => asked).toBe(1);
    answer.resolve(principal);
    expect(new Set(await Promise.all(calls))).toEqual(new Set(["ok"]));
    expect(asked).toBe(1);
  });

  test("looks up at most a hundred keys at a time", async () => {
    const answer = Promise.withResolvers<undefined>();
    const service = serve({ findPrincipal: () => answer.promise });
    const calls = Array.from({ length: 101 }, (_, i) => service.call(`Bearer k${i}`));
    expect(await Promise.race(calls)).toBe("Unavailable KEY_LOOKUPS_BUSY");
    answer.resolve(undefined);
    const outcomes = await Promise.all(calls);
    expect(outcomes.filter((outcome) => outcome === "Unauthenticated API_KEY_INVALID")).toHaveLength(100);
  });

  test("a database that is down makes calls unavailable, not unauthenticated, and is asked again", async () => {
    const faults: unknown[] = [];
    let isDown = true;
    const service = serve({
      onFault: (fault) => faults.push(fault),
      findPrincipal: async () => {
        if (isDown) throw new Error("connection refused");
        return principal;
      },
    });
    expect(await service.call("Bearer k")).toBe("Unavailable DATABASE_UNAVAILABLE");
    isDown = false;
    expect(await service.call("Bearer k")).toBe("ok");
    expect(faults).toHaveLength(1);
  });
});

describe("the stored keys", () => {
  let database: TestDatabase;
  beforeAll(async () => {
    database = await testDatabase();
  });
  afterAll(() => database[Symbol.asyncDispose]());

  async function storedKey(project: string): Promise<{ hash: Buffer; id: string }> {
    const { project_id: projectId } = await ensureProject(database.db, project, signsWith());
    const key = newApiKey();
    const hash = hashApiKey(key);
    const id = await createApiKey(database.db, { projectId, keyHash: hash, name: "test", hint: apiKeyHint(key) });
    return { hash, id: id ?? "" };
  }

  test("a key opens its project until it is revoked, and no other", async () => {
    const a = await storedKey("a");
    const b = await storedKey("b");
    const owner = await findKeyOwner(database.db, a.hash);
    expect(owner).toMatchObject({ strict_path_body: false, strict_fields: false });
    expect((await findKeyOwner(database.db, b.hash))?.project_id).not.toBe(owner?.project_id);

    expect(await revokeApiKey(database.db, a.id)).toBe("revoked");
    expect(await findKeyOwner(database.db, a.hash)).toBeUndefined();
    expect(await findKeyOwner(database.db, b.hash)).toBeDefined();
    expect(await revokeApiKey(database.db, a.id)).toBe("already_revoked");
    expect(await revokeApiKey(database.db, "00000000-0000-0000-0000-000000000000")).toBe("missing");
    expect(await listApiKeys(database.db, "a")).toMatchObject([{ project: "a", revoked_at: expect.any(Date) }]);
  });

  test("the strict switches of the project come with its key", async () => {
    const { hash } = await storedKey("strict");
    await setStrictSwitches(database.db, "strict", { strictFields: true });
    expect(await findKeyOwner(database.db, hash)).toMatchObject({ strict_path_body: false, strict_fields: true });
    expect(await setStrictSwitches(database.db, "nobody", { strictFields: true })).toBeUndefined();
  });

  test("a project that many make at once is one project with one secret", async () => {
    const make = (_: unknown, i: number) => ensureProject(database.db, "race", signsWith(`s${i}`));
    const made = await Promise.all(Array.from({ length: 10 }, make));
    const ids = new Set(made.map((row) => row.project_id));
    expect(ids.size).toBe(1);
    const keys = database.db
      .selectFrom("signing_keys")
      .selectAll()
      .where("project_id", "in", [...ids]);
    expect(await keys.execute()).toHaveLength(1);
  });
});
