import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import { type RestServer, serveRest } from "./rest-server.ts";

/** Every method answers; publish and consume pass a payload on. */
async function serveAll(): Promise<RestServer> {
  let stored: { payload: Uint8Array; contentType: string } | undefined;
  return serveRest((router) => {
    router.service(CronService, {
      createCronJob: () => ({}),
      updateCronJob: () => ({}),
      listCronJobs: () => ({}),
      getCronRun: () => ({}),
    });
    router.service(TaskService, { scheduleTask: () => ({}), listRuns: () => ({}) });
    router.service(QueueService, {
      publish({ payload, contentType }) {
        stored = payload === undefined ? undefined : { payload, contentType };
        return {};
      },
      consume: () => ({ messages: stored === undefined ? [] : [stored] }),
      publishBatch: () => ({}),
      createQueue: () => ({}),
      updateQueue: () => ({}),
      async *consumeStream() {
        yield {};
      },
    });
  });
}

const ROUTES = [
  ["POST", "/cron/create"],
  ["PATCH", "/cron/update/ID"],
  ["POST", "/task/schedule"],
  ["POST", "/queue/publish"],
  ["POST", "/queue/publish_batch"],
  ["POST", "/queue/create"],
  ["PATCH", "/queue/update/q"],
  ["POST", "/queue/consume_stream"],
] as const;

const NAMES = [
  "queue",
  "name",
  "payload",
  "content_type",
  "contentType",
  "headers",
  "retries",
  "retry",
  "run_at",
  "messages",
  "priority",
  "type",
  "overlap_policy",
  "update_mask",
  "max_runs",
  "enable_priority",
  "__proto__",
];

/** Bodies that look like requests: known names with values of every kind. */
const almostRequests = fc
  .dictionary(
    fc.constantFrom(...NAMES),
    fc.oneof(
      fc.jsonValue(),
      fc.constantFrom<unknown>("fifo", "text/plain", "2030-01-01", 1e21, -0, [{ payload: 1 }, { retry: [] }]),
    ),
    { maxKeys: 6 },
  )
  .map((value) => Buffer.from(JSON.stringify(value)));

/** Any JSON text, with white space between its tokens. */
const spacedJson = fc
  .tuple(
    fc.jsonValue({ maxDepth: 8 }),
    fc.constantFrom(undefined, 1, " \t", "\n\r"),
    fc.constantFrom("9007199254740993", "-0", "1E400", '{"k":1 ,"k":2}', '"\\ud800"', "[ ]"),
  )
  .map(([value, indent, odd]) => `{ "v" : ${JSON.stringify(value, null, indent)},\r\n"odd":\t${odd} }`);

describe("whatever is sent", () => {
  test("never causes a fault or a hang", { timeout: 60_000 }, async () => {
    await using server = await serveAll();
    const bodies = fc.oneof(
      fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
      almostRequests,
      spacedJson.map((text) => Buffer.from(text)),
    );
    const property = fc.asyncProperty(fc.constantFrom(...ROUTES), bodies, async ([method, path], body) => {
      const response = await fetch(`${server.origin}${path}`, {
        method,
        body: new Uint8Array(body),
        signal: AbortSignal.timeout(5000),
      });
      const text = await response.text();
      expect([200, 400], text).toContain(response.status);
      expect(() => JSON.parse(text)).not.toThrow();
    });
    await fc.assert(property, { numRuns: 400 });
    expect(server.faults).toEqual([]);
  });

  test("in the path and the query never causes a fault or a hang", { timeout: 60_000 }, async () => {
    await using server = await serveAll();
    const piece = fc.oneof(fc.webFragments(), fc.constantFrom("%2F", "%00", "%ff", "..", ".", ";a=b", "%", ":x", "ID"));
    const key = fc.constantFrom("limit", "state", "since", "cursor", "a.b", "__proto__", "retry.x", "headers.x");
    const query = fc.array(fc.tuple(key, fc.webQueryParameters()), { maxLength: 4 });
    const property = fc.asyncProperty(fc.array(piece, { maxLength: 3 }), query, async (pieces, pairs) => {
      const search = pairs.map(([name, value]) => `${name}=${value}`).join("&");
      for (const path of [`/cron/runs/get/${pieces.join("/")}`, "/run/list"]) {
        const response = await fetch(`${server.origin}${path.replaceAll("#", "")}?${search}`, {
          signal: AbortSignal.timeout(5000),
        });
        expect([200, 400, 404, 405, 501], await response.text()).toContain(response.status);
      }
    });
    await fc.assert(property, { numRuns: 200 });
    expect(server.faults).toEqual([]);
  });

  test("as a payload of JSON comes back byte for byte", { timeout: 60_000 }, async () => {
    await using server = await serveAll();
    const property = fc.asyncProperty(spacedJson, async (payload) => {
      await fetch(`${server.origin}/queue/publish`, {
        method: "POST",
        body: `{"queue":"q","payload":  ${payload} ,"priority":1}`,
      });
      const consumed = await (await fetch(`${server.origin}/queue/consume`, { method: "POST", body: "{}" })).text();
      expect(consumed).toContain(`"payload":${payload},"content_type":""`);
    });
    await fc.assert(property, { numRuns: 200 });
  });

  test("a million levels deep is refused at once", async () => {
    await using server = await serveAll();
    for (const body of [`{"payload":${"[".repeat(1_000_000)}`, "[".repeat(1_000_000), '{"a":'.repeat(200_000)]) {
      const startedAt = performance.now();
      const response = await fetch(`${server.origin}/queue/publish`, { method: "POST", body });
      expect(response.status).toBe(400);
      expect(performance.now() - startedAt).toBeLessThan(1000);
    }
  });
});
