import { createConnectRouter } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { Refusal } from "../../src/errors.ts";
import { RouteTable } from "../../src/rest/route-table.ts";
import { SERVICES } from "../../src/rpc/routes.ts";

const DOCUMENTED = `
POST /v1/scheduling/cron/create
DELETE /v1/scheduling/cron/delete/{id}
GET /v1/scheduling/cron/get/{id}
GET /v1/scheduling/cron/list
POST /v1/scheduling/cron/pause/{id}
POST /v1/scheduling/cron/resume/{id}
GET /v1/scheduling/cron/retention/get/{id}
PUT /v1/scheduling/cron/retention/set/{id}
GET /v1/scheduling/cron/runs/get/{id}/{run_id}
POST /v1/scheduling/cron/trigger/{id}
PATCH /v1/scheduling/cron/update/{id}
POST /v1/scheduling/queue/ack
POST /v1/scheduling/queue/consume
POST /v1/scheduling/queue/create
DELETE /v1/scheduling/queue/delete/{queue}
GET /v1/scheduling/queue/dlq/list/{queue}
POST /v1/scheduling/queue/dlq/redrive/{queue}
GET /v1/scheduling/queue/get/{queue}
GET /v1/scheduling/queue/list
POST /v1/scheduling/queue/nack
POST /v1/scheduling/queue/publish
POST /v1/scheduling/queue/publish_batch
POST /v1/scheduling/queue/purge/{queue}
POST /v1/scheduling/queue/push_subscribe/{queue}
GET /v1/scheduling/queue/stats/{queue}
PATCH /v1/scheduling/queue/update/{queue}
GET /v1/scheduling/run/list
POST /v1/scheduling/task/schedule`
  .trim()
  .split("\n")
  .map((line) => line.split(" ") as [string, string]);

function handlers() {
  const router = createConnectRouter({ grpc: false, grpcWeb: false, connect: true });
  for (const service of SERVICES) router.service(service, {});
  return router.handlers;
}

const table = new RouteTable(handlers(), "/v1/scheduling");

function find(method: string, path: string): { rpc: string; path: Record<string, string> } | undefined {
  const match = table.find(method, path);
  if (match.kind !== "route") return undefined;
  const bound = [...match.path].map(([field, text]) => [field.name, text]);
  return { rpc: match.route.handler.method.name, path: Object.fromEntries(bound) };
}

describe("the route table", () => {
  test("is the one that was agreed on", async () => {
    const lines = table.routes.map(
      ({ httpMethod, path, handler }) => `${path} ${httpMethod} -> ${handler.service.typeName}/${handler.method.name}`,
    );
    await expect(`${lines.toSorted().join("\n")}\n`).toMatchFileSnapshot("../golden/routes.txt");
  });

  test("has all 28 documented capabilities, with and without the base path", () => {
    expect(DOCUMENTED).toHaveLength(28);
    const rpcs = new Set<string>();
    for (const [method, template] of DOCUMENTED) {
      const path = template.replace(/\{\w+\}/g, "ID");
      const found = find(method, path);
      expect(found, `${method} ${template}`).toBeDefined();
      expect(find(method, path.replace("/v1/scheduling", ""))).toEqual(found);
      rpcs.add(found?.rpc ?? "");
    }
    expect(rpcs.size).toBe(28);
  });

  test("answers HEAD like GET, but not where GET is a stream", () => {
    expect(find("HEAD", "/queue/list")?.rpc).toBe("ListQueues");
    expect(table.find("HEAD", "/queue/consume_stream/q")).toEqual({ kind: "method_not_allowed", allow: ["GET"] });
  });

  test("names the methods that a path does have", () => {
    expect(table.find("PUT", "/queue/list")).toEqual({ kind: "method_not_allowed", allow: ["GET", "HEAD"] });
    expect(table.find("GET", "/v1/scheduling/cron/create")).toEqual({ kind: "method_not_allowed", allow: ["POST"] });
  });

  test("takes a slash at the end as if it were not there, and no empty segment anywhere", () => {
    expect(find("GET", "/queue/get/orders/")?.path).toEqual({ queue: "orders" });
    for (const path of ["/queue/get/", "/queue/get//", "//queue/list", "/queue//list", "/queue/list//", "", "/", "*"]) {
      expect(table.find("GET", path).kind, path).toBe("not_found");
    }
  });

  test("decodes percent escapes once, and an encoded slash separates nothing", () => {
    expect(find("GET", "/queue/get/a%2Fb")?.path).toEqual({ queue: "a/b" });
    expect(find("GET", "/queue/get/a%252Fb")?.path).toEqual({ queue: "a%2Fb" });
    expect(find("GET", "/queue%2Flist")).toBeUndefined();
    expect(find("GET", "/%71ueue/list")?.rpc).toBe("ListQueues");
  });

  test("gives dots, colons and semicolons to the fields as they are", () => {
    for (const id of ["..", ".", "a:b", "a;v=1", "...", "%2e%2e"]) {
      expect(find("GET", `/queue/get/${id}`)?.path, id).toEqual({ queue: decodeURIComponent(id) });
    }
    expect(find("GET", "/queue/get/../list")).toBeUndefined();
  });

  test.each(["/queue/get/%00", "/queue/get/%ff", "/queue/get/%c3%28", "/queue/get/%", "/%zz"])("refuses %s", (path) => {
    expect(() => table.find("GET", path)).toThrow(Refusal);
  });

  test("refuses at start two routes that take the same requests", () => {
    expect(() => new RouteTable([...handlers(), ...handlers()], "/v1/scheduling")).toThrow(/is taken by/);
  });
});
