import { expect, test } from "vitest";
import { InFlight } from "../../src/worker/in-flight.ts";

test("what an endpoint is known for is forgotten when so many others were sent to since that too many are remembered", () => {
  const flying = new InFlight(8);
  const endpoint = (n: number) => ({ projectId: "p", endpointId: `e${n}` });
  const succeed = (n: number) => flying.start("p", `e${n}`, `http://127.0.0.1/${n}`).end("succeeded", 1);
  for (let n = 0; n < 10_000; n++) succeed(n);
  succeed(0);
  succeed(10_000);
  expect([0, 1, 2, 10_000].map((n) => flying.loadOf(endpoint(n)).standing)).toEqual([
    "proven",
    "new",
    "proven",
    "proven",
  ]);
});
