import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { testDatabase } from "../support/database.ts";
import { startReceiver } from "../support/receiver.ts";
import { must, until } from "./calls.ts";
import { type Node, startNode } from "./node.ts";
import { sized } from "./scale.ts";

const GROUPS = sized(50, 12);
const MESSAGES_PER_GROUP = sized(100, 20);
const KILLS = sized(10, 2);
/** How long the receiver takes, in milliseconds, so that kills meet pushes under way. */
const ANSWER_MS = 20;

/** What came at one path: which message, of which group, in order of arrival. */
interface Arrival {
  readonly group: string;
  readonly n: number;
  readonly id: string;
}

test.each([
  ["compete", 1],
  ["fanout", 2],
] as const)(
  "pushes of a FIFO queue come in the order of each group, whichever node is killed (%s)",
  { timeout: sized(1_800_000, 300_000) },
  async (mode, subscriptions) => {
    await using database = await testDatabase();
    await using receiver = await startReceiver();
    receiver.respond(async () => {
      await delay(ANSWER_MS);
      return { status: 200 };
    });
    const env = { CARILLON_DATABASE_URL: database.url };
    const nodes: Node[] = [await startNode(env), await startNode(env)];
    const address = () => nodes[0]?.url ?? "";
    await must(address(), "POST", "/queue/create", { queue: "steps", type: "fifo", max_retries: 1_000 });
    const paths = Array.from({ length: subscriptions }, (_, i) => `/hook-${i}`);
    for (const path of paths) {
      const url = `${receiver.url}${path}`;
      await must(address(), "POST", "/queue/push_subscribe/steps", {
        url,
        mode,
        visibility_timeout: 1,
        timeout_seconds: 1,
      });
    }
    const total = GROUPS * MESSAGES_PER_GROUP;
    for (let n = 0; n < MESSAGES_PER_GROUP; n++) {
      const messages = Array.from({ length: GROUPS }, (_, group) => ({ payload: { n }, group_id: `group ${group}` }));
      await must(address(), "POST", "/queue/publish_batch", { queue: "steps", messages });
    }

    const arrivals = (path: string): Arrival[] =>
      receiver.requests
        .filter((request) => request.path === path)
        .map(({ headers, body }) => ({
          group: String(headers["carillon-group-id"]),
          n: JSON.parse(body.toString()).n,
          id: String(headers["webhook-id"]),
        }));
    const came = (path: string) => new Set(arrivals(path).map(({ id }) => id)).size;
    for (let kill = 1; kill <= KILLS; kill++) {
      const due = Math.floor((total * kill) / (KILLS + 1));
      await until(`${due} arrivals`, 240_000, async () => (came(paths[0] ?? "") >= due ? true : undefined));
      await nodes[kill % 2]?.kill();
      nodes[kill % 2] = await startNode(env);
    }
    await until("everything has arrived", 240_000, async () =>
      paths.every((path) => came(path) === total) ? true : undefined,
    );
    await until("everything is settled", 60_000, async () => {
      const stats = await must(address(), "GET", "/queue/stats/steps");
      return stats.available + stats.delayed + stats.in_flight === 0 ? true : undefined;
    });

    for (const path of paths) {
      for (const [group, ofGroup] of Map.groupBy(arrivals(path), (arrival) => arrival.group)) {
        // A push that was cut off comes again, with the same id, before the next of its group.
        const once = ofGroup.filter(({ id }, i) => ofGroup[i - 1]?.id !== id);
        expect(
          once.map(({ n }) => n),
          `${path} ${group}`,
        ).toEqual(Array.from({ length: MESSAGES_PER_GROUP }, (_, n) => n));
      }
    }
    expect((await must(address(), "GET", "/queue/stats/steps")).dlq).toBe(0);
  },
);
