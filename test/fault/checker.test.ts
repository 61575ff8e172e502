import { expect, test } from "vitest";
import { BREACHES, check, type Violation } from "./checker.ts";
import type { HandOut, History, Publication, Settlement, Stream } from "./history.ts";

/** Leases of 1 s, on a server whose clock began a million milliseconds earlier than the clients'. */
const LEASE_MS = 1_000;
const SERVER_MS = 1_000_000;

const published = (n: number, rest: Partial<Publication> = {}): Publication => ({
  n,
  group: "",
  delayMs: 0,
  invokedAt: 0,
  messageId: `m${n}`,
  ...rest,
});

/** Message `n`, asked for and handed out at `at` for the `attempts`th time. */
const handed = (n: number, at: number, attempts = 1, rest: Partial<HandOut> = {}): HandOut => ({
  messageId: `m${n}`,
  n,
  receipt: `m${n}#${attempts}`,
  attempts,
  requestId: "",
  askedAt: at,
  receivedAt: at,
  leaseMs: LEASE_MS,
  leaseExpiresAt: SERVER_MS + at + LEASE_MS,
  ...rest,
});

/** A call on the `attempts`th hand-out of message `n` at `at`, answered 10 ms later. */
const call = (
  verb: Settlement["verb"],
  n: number,
  at: number,
  attempts = 1,
  rest: Partial<Settlement> = {},
): Settlement => ({
  verb,
  messageId: `m${n}`,
  receipt: `m${n}#${attempts}`,
  ms: 0,
  invokedAt: at,
  answeredAt: at + 10,
  outcome: "done",
  ...rest,
});
const ack = (n: number, at: number, attempts = 1, rest: Partial<Settlement> = {}) => call("ack", n, at, attempts, rest);
/** One that was never answered. */
const unanswered = (verb: Settlement["verb"], n: number, at: number, attempts = 1): Settlement => {
  const { answeredAt: _, ...rest } = call(verb, n, at, attempts);
  return { ...rest, outcome: "unknown" };
};
const refused = (verb: Settlement["verb"], n: number, at: number, attempts = 1, reason = "lease_lost"): Settlement =>
  call(verb, n, at, attempts, { outcome: "refused", reason });

/** Published by a call that was never answered. */
const unacknowledged = (n: number): Publication => {
  const { messageId: _, ...rest } = published(n);
  return rest;
};
const inGroup = (n: number): Publication => published(n, { group: "g" });

/** Opened at the start; open to this day, or until `endedAt`. */
const stream = (endedAt?: number): Stream => ({ openedAt: 0, ...(endedAt !== undefined && { endedAt }) });
/** As `handed`, by a stream. */
const streamed = (n: number, at: number, attempts = 1, by = stream()): HandOut =>
  handed(n, at, attempts, { askedAt: by.openedAt, stream: by });

function history(...records: readonly (Publication | HandOut | Settlement | Stream)[]): History {
  return {
    publications: records.filter((record): record is Publication => "group" in record),
    handOuts: records.filter((record): record is HandOut => "attempts" in record),
    settlements: records.filter((record): record is Settlement => "verb" in record),
    streams: records.filter((record): record is Stream => "openedAt" in record),
    drained: true,
  };
}

test.each<[string, History]>([
  ["published, handed out, acked", history(published(1), handed(1, 100), ack(1, 200))],
  ["no answer to the publish, and not stored", history(unacknowledged(1))],
  ["no answer to the publish, but stored", history(unacknowledged(1), handed(1, 100), ack(1, 200))],
  ["back at the end of its lease", history(published(1), handed(1, 100), handed(1, 1_100, 2), ack(1, 1_200, 2))],
  ["back after a nack", history(published(1), handed(1, 100), call("nack", 1, 150), handed(1, 155, 2), ack(1, 200, 2))],
  [
    "back after a nack without an answer",
    history(published(1), handed(1, 100), unanswered("nack", 1, 150), handed(1, 300, 2), ack(1, 400, 2)),
  ],
  [
    "back after an extend to nothing",
    history(published(1), handed(1, 100), call("extend", 1, 150), handed(1, 160, 2), ack(1, 200, 2)),
  ],
  [
    "back when its stream ended",
    history(published(1), streamed(1, 100, 1, stream(300)), handed(1, 250, 2), ack(1, 400, 2)),
  ],
  ["no answer to the ack", history(published(1), handed(1, 100), unanswered("ack", 1, 200))],
  [
    "no answer to the ack, which did nothing",
    history(published(1), handed(1, 100), unanswered("ack", 1, 200), handed(1, 1_200, 2), ack(1, 1_300, 2)),
  ],
  [
    "no answer to the ack, which worked",
    history(published(1), handed(1, 100), unanswered("ack", 1, 200), ack(1, 300, 1, { outcome: "already" })),
  ],
  [
    "a stale receipt refused",
    history(published(1), handed(1, 100), handed(1, 1_200, 2), refused("ack", 1, 1_300), ack(1, 1_400, 2)),
  ],
  ["a late ack", history(published(1), handed(1, 100), ack(1, 5_000))],
  [
    "a pull answered again by its request id",
    history(
      published(1),
      handed(1, 100, 1, { requestId: "r" }),
      handed(1, 200, 1, { requestId: "r", askedAt: 100 }),
      ack(1, 300),
    ),
  ],
  [
    "a group in order",
    history(
      ...[inGroup(1), handed(1, 100), call("nack", 1, 150), handed(1, 200, 2), ack(1, 250, 2)],
      ...[inGroup(2), handed(2, 255), ack(2, 300)],
    ),
  ],
  [
    "a group in order by an ack without an answer",
    history(inGroup(1), handed(1, 100), unanswered("ack", 1, 200), inGroup(2), handed(2, 210), ack(2, 300)),
  ],
  [
    "a group in order, of which an old hand-out arrives late",
    history(
      ...[inGroup(1), handed(1, 1_150, 2), ack(1, 1_200, 2), inGroup(2), handed(2, 1_300), ack(2, 1_400)],
      handed(1, 1_500, 1, { askedAt: 100, leaseExpiresAt: SERVER_MS + 1_100 }),
    ),
  ],
])("passes: %s", (_, given) => {
  expect(check(given)).toEqual([]);
});

const FORGED: readonly [string, History, readonly Violation["kind"][]][] = [
  [
    "a run that ended early",
    { ...history(published(1), handed(1, 100), ack(1, 200)), drained: false },
    ["not drained"],
  ],
  ["never handed out", history(published(1)), ["lost"]],
  ["nacked and never seen again", history(published(1), handed(1, 100), call("nack", 1, 150)), ["lost"]],
  ["refused an ack and never seen again", history(published(1), handed(1, 100), refused("ack", 1, 5_000)), ["lost"]],
  [
    "handed out by a publish without an answer, and never seen again",
    history(unacknowledged(1), handed(1, 100)),
    ["lost"],
  ],
  ["a payload from nowhere", history(handed(1, 100), ack(1, 200)), ["unexpected"]],
  [
    "another payload than was published",
    history(published(1), handed(1, 100, 1, { n: undefined }), ack(1, 200)),
    ["unexpected"],
  ],
  [
    "stored twice",
    history(published(1), handed(1, 100), ack(1, 200), ...[handed(1, 300), ack(1, 400)].map(asTwin)),
    ["doubled"],
  ],
  [
    "stored twice without an answer to the publish",
    history(unacknowledged(1), handed(1, 100), ack(1, 200), ...[handed(1, 300), ack(1, 400)].map(asTwin)),
    ["doubled"],
  ],
  [
    "back before the end of its lease",
    history(published(1), handed(1, 100), handed(1, 1_099, 2), ack(1, 1_200, 2)),
    ["early"],
  ],
  [
    "back before the end of its lease, by streams, as the server's clock shows",
    history(published(1), streamed(1, 500), streamed(1, 1_200, 2), ack(1, 1_300, 2)),
    ["early"],
  ],
  [
    "back long before its stream ended",
    history(published(1), streamed(1, 500, 1, stream(9_000)), streamed(1, 1_200, 2), ack(1, 1_300, 2)),
    ["early"],
  ],
  [
    "back before the end of an extended lease",
    history(
      published(1),
      ...[handed(1, 100), call("extend", 1, 500, 1, { ms: LEASE_MS }), handed(1, 1_400, 2), ack(1, 1_450, 2)],
    ),
    ["early"],
  ],
  [
    "back before a nack's delay",
    history(
      published(1),
      ...[handed(1, 100), call("nack", 1, 150, 1, { ms: 5_000 }), handed(1, 3_000, 2), ack(1, 3_100, 2)],
    ),
    ["early"],
  ],
  ["out before its delay", history(published(1, { delayMs: 500 }), handed(1, 400), ack(1, 450)), ["early"]],
  [
    "back after a good ack",
    history(published(1), handed(1, 100), ack(1, 200), handed(1, 5_000, 2)),
    ["redelivered after ack"],
  ],
  [
    "back after a good ack, though it was asked for before",
    history(published(1), handed(1, 100), ack(1, 1_200), handed(1, 1_300, 2, { askedAt: 1_150 })),
    ["redelivered after ack"],
  ],
  ["acked twice", history(published(1), handed(1, 100), ack(1, 200), ack(1, 300)), ["acked twice"]],
  [
    "acked already, by nobody",
    history(published(1), handed(1, 100), ack(1, 200, 1, { outcome: "already" })),
    ["lost", "already without ack"],
  ],
  [
    "a zombie's ack",
    history(published(1), handed(1, 100), handed(1, 1_200, 2), ack(1, 1_300, 1)),
    ["stale receipt accepted"],
  ],
  ...(["nack", "extend"] as const).map((verb): (typeof FORGED)[number] => [
    `a zombie's ${verb}`,
    history(
      ...[published(1), handed(1, 100), handed(1, 1_200, 2)],
      ...[call(verb, 1, 1_300, 1, { ms: 9_000 }), ack(1, 1_400, 2)],
    ),
    ["stale receipt accepted"],
  ]),
  [
    "an ack after a nack",
    history(published(1), handed(1, 100), call("nack", 1, 150), ack(1, 200)),
    ["stale receipt accepted"],
  ],
  [
    "a live receipt refused",
    history(published(1), handed(1, 100), refused("ack", 1, 200), handed(1, 1_200, 2), ack(1, 1_300, 2)),
    ["live receipt refused"],
  ],
  [
    "not found, and never acked",
    history(
      published(1),
      handed(1, 100),
      refused("ack", 1, 5_000, 1, "not_found"),
      handed(1, 6_000, 2),
      ack(1, 6_100, 2),
    ),
    ["live receipt refused"],
  ],
  [
    "two hand-outs of one number",
    history(
      published(1),
      handed(1, 100),
      handed(1, 1_200, 1, { receipt: "other" }),
      ack(1, 1_300, 1, { receipt: "other" }),
    ),
    ["attempts"],
  ],
  [
    "numbers that count down",
    history(published(1), handed(1, 1_200, 1), handed(1, 100, 2), ack(1, 1_300, 1)),
    ["attempts", "early", "stale receipt accepted"],
  ],
  [
    "one receipt for two",
    history(published(1), handed(1, 100), handed(1, 1_200, 2, { receipt: "m1#1" }), ack(1, 1_300)),
    ["receipt shared", "stale receipt accepted"],
  ],
  [
    "one receipt for two requests",
    history(published(1), handed(1, 100, 1, { requestId: "r" }), handed(1, 200, 1, { requestId: "s" }), ack(1, 300)),
    ["receipt shared"],
  ],
  [
    "two of a group in flight",
    history(inGroup(1), handed(1, 100), inGroup(2), handed(2, 200), ack(1, 300), ack(2, 400)),
    ["two in flight"],
  ],
  [
    "two of a group in flight, of which the first is back",
    history(
      ...[inGroup(1), handed(1, 100), call("nack", 1, 150), inGroup(2), handed(2, 200), ack(2, 250)],
      ...[handed(1, 300, 2), ack(1, 400, 2)],
    ),
    ["out of order"],
  ],
  [
    "the second of a group first",
    history(inGroup(1), inGroup(2), handed(2, 100), ack(2, 150), handed(1, 200), ack(1, 300)),
    ["out of order"],
  ],
  ["the first of a group lost", history(inGroup(1), inGroup(2), handed(2, 100), ack(2, 150)), ["lost", "out of order"]],
];

/** The same of another message. */
function asTwin<T extends HandOut | Settlement>(record: T): T {
  return { ...record, messageId: "twin", receipt: `twin${record.receipt}` };
}

test.each(FORGED)("finds: %s", (_, given, kinds) => {
  expect(check(given).map(({ kind }) => kind)).toEqual(kinds);
});

test("has a forged history for every breach", () => {
  expect(new Set(FORGED.flatMap(([, , kinds]) => kinds))).toEqual(new Set(BREACHES));
});
