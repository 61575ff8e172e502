import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { testDatabase } from "../support/database.ts";
import { call, eachOf, must, until } from "./calls.ts";
import { startNode } from "./node.ts";
import { INSPECTABLE, memoryOf } from "./node-memory.ts";
import { sized } from "./scale.ts";
import { openGrpcStream, openRestStream } from "./streams.ts";

const MIB = 1_048_576;
const MAX_UNACKED = 100;
const WARM_UP = 60;
/** Bytes of a batch's payloads. */
const BATCH_BYTES = 500_000;

/**
 * What V8 has taken from the system is up to twice what it holds, by how busy it was, and does not come back. So the
 * promise is held against what the node holds, and this bound only finds what lies outside of V8's accounts.
 */
function mostRss(mostMib: number): number {
  return Math.max(192, 2 * mostMib) * MIB;
}

test.each([
  { streams: sized(500, 200), payloadBytes: 200, mostMib: sized(64, 36) },
  { streams: sized(500, 40), payloadBytes: 10_000, mostMib: sized(256, 26) },
])(
  "$streams streams that nobody reads, with messages of $payloadBytes bytes, cost a node $mostMib MiB at most",
  async ({ streams, payloadBytes, mostMib }) => {
    await using database = await testDatabase();
    const node = await startNode({ ...INSPECTABLE, CARILLON_DATABASE_URL: database.url });
    const { url } = node;
    await must(url, "POST", "/queue/create", { queue: "orders", visibility_timeout: 600 });
    const total = streams * MAX_UNACKED;
    const batch = Math.floor(BATCH_BYTES / payloadBytes / 10) * 10;
    const messages = Array(Math.min(1_000, batch)).fill({ payload: "x".repeat(payloadBytes - 2) });
    await eachOf(Array(Math.ceil(total / messages.length)).keys(), 4, async () => {
      await must(url, "POST", "/queue/publish_batch", { queue: "orders", messages }, { timeoutMs: 60_000 });
    });
    // Streams before, so that the code which they run is compiled.
    await eachOf(Array(WARM_UP).keys(), 20, async (n) => {
      const stream = (n % 2 === 0 ? openRestStream : openGrpcStream)(url, "orders", MAX_UNACKED);
      await stream.flowing;
      stream.vanish();
    });
    await inFlight(url, 0);

    const before = await memoryOf(node);
    await eachOf(Array(streams).keys(), 20, async (n) => {
      const stream = (n % 2 === 0 ? openRestStream : openGrpcStream)(url, "orders", MAX_UNACKED);
      await stream.flowing;
      stream.stall();
    });
    // Each has what fits into the buffers between it and the node.
    await inFlight(url, streams * 5);
    const after = await memoryOf(node);

    const held = after.held - before.held;
    const rss = after.rss - before.rss;
    console.log(
      `${streams} stalled streams: ${(held / MIB).toFixed(1)} MiB held, RSS ${(rss / MIB).toFixed(1)} MiB more`,
    );
    expect(held).toBeLessThan(mostMib * MIB);
    expect(rss).toBeLessThan(mostRss(mostMib));
    // Others are served meanwhile.
    await until("another queue is served", 60_000, async () => {
      await call(url, "POST", "/queue/publish", { queue: "others", payload: 1 });
      const outcome = await call(url, "POST", "/queue/consume", { queue: "others", wait_seconds: 5 });
      return outcome.kind === "ok" && outcome.body.messages.length > 0 ? true : undefined;
    });
  },
);

/** Waits until at least so many messages of the queue are in flight, or none at all for 0, and until that stands still. */
async function inFlight(url: string, least: number): Promise<void> {
  let before = -1;
  await until(`${least} messages are in flight`, 60_000, async () => {
    await delay(250);
    const outcome = await call(url, "GET", "/queue/stats/orders", undefined, { timeoutMs: 30_000 });
    if (outcome.kind !== "ok") return undefined;
    const { in_flight } = outcome.body;
    const stands = in_flight === before;
    before = in_flight;
    return stands && (least === 0 ? in_flight === 0 : in_flight >= least) ? true : undefined;
  });
}
