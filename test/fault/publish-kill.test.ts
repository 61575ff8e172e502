import { expect, test } from "vitest";
import { testDatabase } from "../support/database.ts";
import { call, eachOf, must } from "./calls.ts";
import { storedPayloads } from "./database-tools.ts";
import { type Node, startNode } from "./node.ts";

const MESSAGES = 10_000;
const CLIENTS = 48;
/** How many acknowledgements come before each kill. */
const KILLS = [2_500, 6_000];
/** Most calls for one message. */
const MAX_TRIES = 50;

/** What the clients know of one message. The checker reads nothing else of them. */
interface Publication {
  readonly n: number;
  /** The ids of all the replies that were ok. */
  readonly ids: Set<string>;
  unknown: number;
  replayed: number;
}

test("kill -9 in the middle of 10,000 publishes loses none and doubles none", async () => {
  await using database = await testDatabase();
  const env = { CARILLON_DATABASE_URL: database.url, CARILLON_ROLE: "api" };
  // The survivor is asked last, so that most calls are under way on the node that is killed.
  let victim: Node = await startNode(env);
  const survivor = await startNode(env);
  await must(survivor.url, "POST", "/queue/create", { queue: "orders" });

  let acked = 0;
  let kills = 0;
  let restarting = Promise.resolve();
  const killInTurn = (): void => {
    const due = KILLS[kills];
    if (due === undefined || acked < due) return;
    kills++;
    const doomed = victim;
    restarting = restarting.then(async () => {
      await doomed.kill();
      expect(doomed.child.signalCode).toBe("SIGKILL");
      victim = await startNode(env);
    });
  };

  const history: Publication[] = [];
  await eachOf(
    Array.from({ length: MESSAGES }, (_, n) => n),
    CLIENTS,
    async (n) => {
      const publication: Publication = { n, ids: new Set(), unknown: 0, replayed: 0 };
      history.push(publication);
      for (let tries = 0; publication.ids.size === 0; tries++) {
        if (tries === MAX_TRIES) throw new Error(`message ${n} was not acknowledged in ${tries} calls`);
        const url = tries % 2 === 0 ? victim.url : survivor.url;
        const outcome = await call(
          url,
          "POST",
          "/queue/publish",
          { queue: "orders", payload: { n } },
          { key: `k${n}` },
        );
        if (outcome.kind === "refused") throw new Error(JSON.stringify(outcome));
        if (outcome.kind === "unknown") {
          publication.unknown++;
          continue;
        }
        publication.ids.add(outcome.body.message_id);
        if (outcome.headers.get("idempotency-replayed") === "true") publication.replayed++;
        acked++;
        killInTurn();
      }
    },
  );
  await restarting;
  expect(kills).toBe(KILLS.length);

  // The drain, on the restarted node.
  const drained: { id: string; n: number }[] = [];
  for (;;) {
    const { messages } = await must(victim.url, "POST", "/queue/consume", {
      queue: "orders",
      max_messages: 100,
      visibility_timeout: 600,
    });
    if (messages.length === 0) break;
    for (const { message_id, payload } of messages) drained.push({ id: message_id, n: payload.n });
  }

  const idOf = new Map(history.map(({ n, ids }) => [n, [...ids][0]]));
  const seen = new Map<number, number>();
  for (const { n } of drained) seen.set(n, (seen.get(n) ?? 0) + 1);
  const lost = history.filter(({ n }) => !seen.has(n)).map(({ n }) => n);
  const doubled = [...seen].filter(([, count]) => count > 1).map(([n]) => n);
  const unexpected = drained.filter(({ id, n }) => idOf.get(n) !== id);
  expect({ lost, doubled, unexpected, total: drained.length }).toEqual({
    lost: [],
    doubled: [],
    unexpected: [],
    total: MESSAGES,
  });
  const stored = (await storedPayloads(database.db)) as { readonly n: number }[];
  expect(stored.length).toBe(MESSAGES);
  expect(new Set(stored.map(({ n }) => n)).size).toBe(MESSAGES);

  const unknown = history.filter((publication) => publication.unknown > 0);
  const replayed = history.filter((publication) => publication.replayed > 0);
  console.log(`publish and kill: ${unknown.length} unknown outcomes, ${replayed.length} of them had taken effect`);
  expect(unknown.length).toBeGreaterThan(0);
});
