import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { startTestCarillon } from "../support/carillon.ts";
import { testDatabase } from "../support/database.ts";
import { must } from "./calls.ts";
import { seededRandom } from "./seed.ts";

const GROUPS = ["a", "b", "c", "d", "e", "f"];
const MESSAGES_PER_GROUP = 25;
const CONSUMERS = 3;
const DEADLINE_MS = 60_000;

/** What a consumer saw, in the order of its own events: a delivery in hand, and the end of it. */
interface Event {
  readonly kind: "received" | "settling";
  readonly group: string;
  readonly n: number;
  readonly attempts: number;
  /** What the consumer says, where it settles. */
  readonly verdict?: "ack" | "nack";
}

/**
 * The order rules of a FIFO queue, checked by a history that consumers wrote. Knows nothing of the server.
 * The order of the events is safe: `received` is noted after the lease began, `settling` before it ends.
 */
function violations(history: readonly Event[]): string[] {
  const found: string[] = [];
  const inHand = new Map<string, number>();
  const acked = new Map<string, number>();
  const attempts = new Map<string, number>();
  for (const { kind, group, n, verdict, attempts: attempt } of history) {
    const name = `${group}${n}, attempt ${attempt}`;
    if (kind === "settling") {
      inHand.delete(group);
      if (verdict === "ack") acked.set(group, n);
      continue;
    }
    const other = inHand.get(group);
    if (other !== undefined) found.push(`${name} was handed out while ${group}${other} was in hand`);
    const next = (acked.get(group) ?? -1) + 1;
    if (n !== next) found.push(`${name} was handed out when ${group}${next} was next`);
    if (attempt !== (attempts.get(`${group}${n}`) ?? 0) + 1) found.push(`${name}: attempts do not count up by one`);
    attempts.set(`${group}${n}`, attempt);
    inHand.set(group, n);
  }
  return found;
}

test("each group of a FIFO queue stays in order under three consumers on two nodes that give messages back", async () => {
  const random = seededRandom("FIFO order");
  await using database = await testDatabase();
  await using one = await startTestCarillon({}, database);
  await using two = await startTestCarillon({}, database);
  const urls = [one.url, two.url];
  await must(one.url, "POST", "/queue/create", { queue: "steps", type: "fifo", max_retries: 1000 });

  const history: Event[] = [];
  let acks = 0;
  let nacks = 0;
  const total = GROUPS.length * MESSAGES_PER_GROUP;
  const deadlineAt = performance.now() + DEADLINE_MS;

  const publishing = GROUPS.map(async (group, i) => {
    for (let n = 0; n < MESSAGES_PER_GROUP; n++) {
      await must(urls[(i + n) % 2] ?? "", "POST", "/queue/publish", {
        queue: "steps",
        group_id: group,
        payload: { group, n },
      });
    }
  });
  const consuming = Array.from({ length: CONSUMERS }, async (_, i) => {
    const url = urls[i % 2] ?? "";
    while (acks < total && performance.now() < deadlineAt) {
      const { messages } = await must(url, "POST", "/queue/consume", {
        queue: "steps",
        max_messages: 1 + Math.floor(random() * 3),
        wait_seconds: 1,
        visibility_timeout: 600,
      });
      const deliveries = messages.map(
        (message: { message_id: string; receipt: string; payload: { group: string; n: number }; attempts: number }) => {
          history.push({ kind: "received", ...message.payload, attempts: message.attempts });
          return message;
        },
      );
      for (const { message_id, receipt, payload, attempts } of deliveries) {
        if (random() < 0.2) await delay(random() * 20);
        const verdict = random() < 0.25 ? "nack" : "ack";
        history.push({ kind: "settling", ...payload, attempts, verdict });
        const answer = await must(url, "POST", `/queue/${verdict}`, {
          queue: "steps",
          message_id,
          receipt,
          ...(verdict === "nack" && { delay_seconds: 0 }),
        });
        expect(answer).toMatchObject(
          verdict === "ack" ? { acked: true, late: false } : { nacked: true, requeued: true },
        );
        if (verdict === "ack") acks++;
        else nacks++;
      }
    }
  });
  await Promise.all([...publishing, ...consuming]);

  expect(violations(history)).toEqual([]);
  expect(acks).toBe(total);
  expect(nacks).toBeGreaterThan(total / 10);
  expect(await must(two.url, "GET", "/queue/stats/steps")).toMatchObject({
    available: 0,
    in_flight: 0,
    delayed: 0,
    dlq: 0,
  });
});

test("the order checker finds what it is there for", () => {
  const received = (n: number, attempts = 1): Event => ({ kind: "received", group: "a", n, attempts });
  const settling = (n: number, verdict: "ack" | "nack"): Event => ({
    kind: "settling",
    group: "a",
    n,
    attempts: 1,
    verdict,
  });
  expect(violations([received(0), settling(0, "nack"), received(0, 2), settling(0, "ack"), received(1)])).toEqual([]);
  expect(violations([received(0), received(1)])).toHaveLength(2);
  expect(violations([received(0), settling(0, "nack"), received(1)])).toHaveLength(1);
  expect(violations([received(0), settling(0, "ack"), received(0, 2)])).toHaveLength(1);
  expect(violations([received(0), settling(0, "nack"), received(0, 1)])).toHaveLength(1);
});
