import { readFile } from "node:fs/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { hashApiKey } from "../../src/domain/api-key.ts";
import { createApiKey } from "../../src/store/api-keys.ts";
import { ensureProject } from "../../src/store/projects.ts";
import { startTestCarillon, TEST_KEY, type TestCarillon } from "../support/carillon.ts";
import { signsWith } from "../support/signing.ts";
import { ok, refused, unique } from "./calls.ts";
import { DOCUMENTED_ROUTES } from "./documented-routes.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

test("S45: any opaque key is accepted as a Bearer token", async () => {
  const project = await ensureProject(carillon.database.db, unique("project"), signsWith());
  const key = "ifr_pk_proj_0123456789";
  await createApiKey(carillon.database.db, {
    projectId: project.project_id,
    keyHash: hashApiKey(key),
    name: "opaque",
    hint: "",
  });
  for (const authorization of [`Bearer ${key}`, `bearer ${key}`, `Bearer ${TEST_KEY}`]) {
    ok(await carillon.rest("GET", "/queue/list", undefined, { authorization }));
  }
  const missing = await fetch(`${carillon.url}/v1/scheduling/queue/list`, { signal: AbortSignal.timeout(10_000) });
  refused({ status: missing.status, body: await missing.json() }, 401, "UNAUTHENTICATED", "API_KEY_MISSING");
});

test("S45: the API is served under /v1/scheduling and at the root", async () => {
  for (const base of ["/v1/scheduling", ""]) {
    const response = await fetch(`${carillon.url}${base}/cron/list`, {
      headers: { authorization: `Bearer ${TEST_KEY}` },
      signal: AbortSignal.timeout(10_000),
    });
    expect(response.status).toBe(200);
    expect(await response.json()).toEqual({ items: [] });
  }
});

test("S46: the 28 documented paths have their documented verbs, and answer 405 with Allow to others", async () => {
  for (const [verb, path] of DOCUMENTED_ROUTES) {
    const url = path.replaceAll(/\{\w+\}/g, "X");
    const served = await carillon.rest(verb, url, verb === "GET" ? undefined : {});
    expect(served.body.error?.reason ?? "", `${verb} ${path}`).not.toMatch(/ROUTE_NOT_FOUND|METHOD_NOT_ALLOWED/);
    const other = verb === "PUT" ? "POST" : "PUT";
    const refusal = await carillon.rest(other, url, {});
    refused(refusal, 405, "METHOD_NOT_ALLOWED", "METHOD_NOT_ALLOWED");
    expect(refusal.headers.get("allow")?.split(", ")).toContain(verb);
  }
  const golden = await readFile(new URL("../golden/routes.txt", import.meta.url), "utf8");
  for (const [verb, path] of DOCUMENTED_ROUTES) {
    const served = golden.split("\n").some((line) => {
      const [template = "", method] = line.split(" ");
      return (
        method === verb &&
        template.replaceAll(/\{\w+\}/g, "{}") === `/v1/scheduling${path.replaceAll(/\{\w+\}/g, "{}")}`
      );
    });
    expect(served, `${verb} ${path}`).toBe(true);
  }
});
