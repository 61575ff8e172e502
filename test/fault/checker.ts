import type { HandOut, History, Publication, Settlement } from "./history.ts";

/** What a history can show to be broken. */
export const BREACHES = [
  "not drained",
  "lost",
  "unexpected",
  "doubled",
  "early",
  "redelivered after ack",
  "acked twice",
  "already without ack",
  "stale receipt accepted",
  "live receipt refused",
  "attempts",
  "receipt shared",
  "two in flight",
  "out of order",
] as const;

/** A promise that was broken, and how. */
export interface Violation {
  readonly kind: (typeof BREACHES)[number];
  readonly text: string;
}

/**
 * How long before its client knows it a stream may have ended, in milliseconds: the server gives back what a stream
 * handed out and then says that it has ended, and the node may be busy in between.
 */
const STREAM_END_MS = 5_000;

/** Everything that a history says of one message. Hand-outs are in the order of their attempts. */
interface Life {
  readonly messageId: string;
  readonly handOuts: HandOut[];
  readonly settlements: Settlement[];
}

/**
 * Holds a history of one queue against the promises of a queue, and returns every breach that it proves. It knows nothing
 * of the server. What is unknown to the clients counts in the server's favour, whichever way it was.
 *
 * The queue must have been empty at first, must not be purged, and must never bury a message.
 *
 * @param slackMs how far the clients' clock and the server's may have drifted apart within a lease, in milliseconds.
 */
export function check(history: History, slackMs = 0): Violation[] {
  const lives = livesOf(history);
  const published = new Map(history.publications.map((publication) => [publication.n, publication]));
  return [
    ...(history.drained ? [] : [{ kind: "not drained", text: "the run ended before the queue was empty" } as const]),
    ...identities(lives, published),
    ...losses(history, lives),
    ...[...lives.values()].flatMap((life) => [
      ...counting(life),
      ...spacing(life, slackMs),
      ...fencing(life),
      ...answers(life, slackMs),
    ]),
    ...delays(history, published, slackMs),
    ...orders(history, lives, slackMs),
  ];
}

function livesOf(history: History): Map<string, Life> {
  const lives = new Map<string, Life>();
  const lifeOf = (messageId: string): Life => {
    const life = lives.get(messageId) ?? { messageId, handOuts: [], settlements: [] };
    lives.set(messageId, life);
    return life;
  };
  for (const handOut of history.handOuts) lifeOf(handOut.messageId).handOuts.push(handOut);
  for (const settlement of history.settlements) lifeOf(settlement.messageId).settlements.push(settlement);
  for (const { handOuts } of lives.values())
    handOuts.sort((a, b) => a.attempts - b.attempts || a.receivedAt - b.receivedAt);
  return lives;
}

/** Each message is one that was published, under the id that its publisher was told, and no other. */
function* identities(lives: ReadonlyMap<string, Life>, published: ReadonlyMap<number, Publication>) {
  const idOf = new Map<number, string>();
  for (const { n, messageId } of published.values()) if (messageId !== undefined) idOf.set(n, messageId);
  for (const { messageId, handOuts } of lives.values()) {
    for (const n of new Set(handOuts.map((handOut) => handOut.n))) {
      if (n === undefined || !published.has(n)) {
        yield { kind: "unexpected", text: `${messageId} has a payload that nobody published` } as const;
        continue;
      }
      const id = idOf.get(n) ?? messageId;
      idOf.set(n, id);
      if (id !== messageId) yield { kind: "doubled", text: `${n} is both ${id} and ${messageId}` } as const;
    }
  }
}

/** What was acknowledged to its publisher is removed by an ack and by nothing else. */
function* losses(history: History, lives: ReadonlyMap<string, Life>) {
  const known = new Map(history.publications.map(({ messageId, n }) => [messageId, `${n}`]));
  const ids = new Set([...known.keys(), ...lives.keys()]);
  for (const id of ids) {
    if (id === undefined) continue;
    const { handOuts = [], settlements = [] } = lives.get(id) ?? {};
    if (settlements.some(mayRemove)) continue;
    const name = `${known.get(id) ?? "?"} (${id})`;
    yield { kind: "lost", text: `${name} was handed out ${handOuts.length} times and never acked` } as const;
  }
}

/** Attempts count up, and every hand-out has a receipt of its own. */
function* counting({ messageId, handOuts }: Life) {
  const byReceipt = new Map<string, HandOut>();
  let before: HandOut | undefined;
  for (const handOut of handOuts) {
    const first = byReceipt.get(handOut.receipt);
    if (first !== undefined) {
      const isRepeat = handOut.requestId !== "" && handOut.requestId === first.requestId;
      if (!isRepeat || handOut.attempts !== first.attempts)
        yield { kind: "receipt shared", text: `${messageId}: two hand-outs have one receipt` } as const;
      continue;
    }
    byReceipt.set(handOut.receipt, handOut);
    if (before !== undefined && handOut.attempts === before.attempts)
      yield { kind: "attempts", text: `${messageId}: two hand-outs count as number ${handOut.attempts}` } as const;
    if (before !== undefined && handOut.receivedAt < before.askedAt)
      yield {
        kind: "attempts",
        text: `${messageId}: number ${before.attempts} came after ${handOut.attempts}`,
      } as const;
    before = handOut;
  }
}

/** Nobody is given a message while the lease of another hand-out lives. */
function* spacing(life: Life, slackMs: number) {
  for (const [before, next] of pairs(firstOfEachReceipt(life.handOuts))) {
    const settlements = life.settlements.filter(
      ({ receipt, invokedAt }) => receipt === before.receipt && invokedAt < next.receivedAt,
    );
    const endsAt = leaseLivesUntil(before, settlements);
    const text = `${life.messageId}: number ${next.attempts} came`;
    if (next.receivedAt + slackMs < endsAt) {
      yield { kind: "early", text: `${text} ${(endsAt - next.receivedAt).toFixed(0)} ms too early` } as const;
      continue;
    }
    // By the server's own clock it is known when a lease began, also for what came by a stream.
    const begunAt = next.leaseExpiresAt - next.leaseMs;
    const isUntouched = settlements.every(({ verb }) => verb === "ack") && next.receivedAt < streamLivesUntil(before);
    if (isUntouched && begunAt + slackMs < before.leaseExpiresAt)
      yield { kind: "early", text: `${text} ${before.leaseExpiresAt - begunAt} ms too early, it says` } as const;
  }
}

/** An ack removes for good, a settlement with the receipt of an earlier hand-out changes nothing. */
function* fencing({ messageId, handOuts, settlements }: Life) {
  const done = settlements.filter(({ outcome }) => outcome === "done");
  const acks = done.filter(({ verb }) => verb === "ack");
  if (acks.length > 1) yield { kind: "acked twice", text: `${messageId}: ${acks.length} acks removed it` } as const;
  for (const settlement of done) {
    const handOut = handOuts.find(({ receipt }) => receipt === settlement.receipt);
    if (handOut === undefined) continue;
    const text = `${messageId}: ${settlement.verb} of number ${handOut.attempts}`;
    const newer = handOuts.filter(({ attempts }) => attempts > handOut.attempts);
    const known = newer.find(({ receivedAt }) => receivedAt < settlement.invokedAt);
    if (known !== undefined)
      yield { kind: "stale receipt accepted", text: `${text}, though number ${known.attempts} was out` } as const;
    // The accepted ack was of the newest hand-out, so there is no later one, however the two crossed on their way.
    else if (settlement.verb === "ack" && newer[0] !== undefined)
      yield { kind: "redelivered after ack", text: `${text}, then number ${newer[0].attempts} came` } as const;
    const gone = done.find(
      ({ verb, ms, receipt, answeredAt = Number.POSITIVE_INFINITY }) =>
        receipt === settlement.receipt &&
        answeredAt < settlement.invokedAt &&
        (verb === "nack" || (verb === "extend" && ms === 0)),
    );
    if (gone !== undefined)
      yield { kind: "stale receipt accepted", text: `${text} after its ${gone.verb}, which ended it` } as const;
  }
}

/** A yes has a reason, and so has a no. */
function* answers({ messageId, handOuts, settlements }: Life, slackMs: number) {
  for (const settlement of settlements) {
    const { verb, outcome, receipt, reason, invokedAt, answeredAt = Number.POSITIVE_INFINITY } = settlement;
    const others = settlements.filter((other) => other !== settlement && other.invokedAt < answeredAt);
    if (outcome === "already" && !others.some(mayRemove))
      yield { kind: "already without ack", text: `${messageId}: nobody else acked it` } as const;
    if (outcome !== "refused") continue;
    const isAcked = others.some(mayRemove);
    const handOut = handOuts.find((candidate) => candidate.receipt === receipt);
    const text = `${messageId}: ${verb} was refused as ${reason}`;
    if ((reason === "not_found" || reason === "already_acked") && !isAcked)
      yield { kind: "live receipt refused", text: `${text}, but nobody acked it` } as const;
    else if (reason === "dead_lettered") yield { kind: "live receipt refused", text } as const;
    else if (handOut !== undefined && handOut.stream === undefined && !isAcked) {
      const own = others.filter((other) => other.receipt === receipt);
      const endsAt = Math.min(handOut.askedAt + handOut.leaseMs, leaseLivesUntil(handOut, own));
      if (answeredAt + slackMs < endsAt)
        yield {
          kind: "live receipt refused",
          text: `${text} after ${(answeredAt - invokedAt).toFixed(0)} ms`,
        } as const;
    }
  }
}

/** What is published with a delay is not handed out before. */
function* delays({ handOuts }: History, published: ReadonlyMap<number, Publication>, slackMs: number) {
  for (const { n = Number.NaN, messageId, receivedAt } of handOuts) {
    const publication = published.get(n);
    if (publication !== undefined && receivedAt + slackMs < publication.invokedAt + publication.delayMs)
      yield { kind: "early", text: `${messageId}: came before its delay of ${publication.delayMs} ms` } as const;
  }
}

/**
 * In a group no message is handed out before the one before it is gone. Its removal is an ack of its newest hand-out,
 * made before the next message came. That also keeps two of them from being in flight together.
 */
function* orders({ publications, handOuts }: History, lives: ReadonlyMap<string, Life>, slackMs: number) {
  const byNumber = Map.groupBy(handOuts, ({ n }) => n);
  const groups = Map.groupBy(publications, ({ group }) => group);
  for (const [group, members] of groups) {
    if (group === "") continue;
    // What nobody acknowledged and nobody was given may never have been stored.
    const stored = members.filter(({ n, messageId }) => messageId !== undefined || byNumber.has(n));
    const inOrder = stored.toSorted((a, b) => a.n - b.n);
    for (const [before, next] of pairs(inOrder)) {
      const came = byNumber.get(next.n);
      if (came === undefined) continue;
      const firstAt = Math.min(...came.map(({ receivedAt }) => receivedAt));
      const newest = byNumber
        .get(before.n)
        ?.toSorted((a, b) => a.attempts - b.attempts)
        .at(-1);
      const settlements = lives.get(newest?.messageId ?? "")?.settlements ?? [];
      const own = settlements.filter(({ receipt }) => receipt === newest?.receipt);
      if (own.some((settlement) => mayRemove(settlement) && settlement.invokedAt <= firstAt)) continue;
      const isInHand =
        newest !== undefined && newest.receivedAt < firstAt && firstAt + slackMs < leaseLivesUntil(newest, own);
      const kind = isInHand ? "two in flight" : "out of order";
      yield { kind, text: `group ${group}: ${next.n} came before ${before.n} was acked` } as const;
    }
  }
}

/** Whether the call removed the message, or may have. */
function mayRemove({ verb, outcome }: Settlement): boolean {
  return verb === "ack" && (outcome === "done" || outcome === "unknown");
}

/** Until when a lease lives at least, on the clients' clock. `settlements` are those with its receipt. */
function leaseLivesUntil(handOut: HandOut, settlements: readonly Settlement[]): number {
  let endsAt = handOut.askedAt + handOut.leaseMs;
  for (const { verb, outcome, ms, invokedAt } of settlements.toSorted((a, b) => a.invokedAt - b.invokedAt)) {
    if (verb === "ack" || outcome === "refused" || outcome === "already") continue;
    const moved = invokedAt + ms;
    endsAt = outcome === "done" ? moved : Math.min(endsAt, moved);
  }
  return Math.min(endsAt, streamLivesUntil(handOut));
}

function streamLivesUntil({ stream }: HandOut): number {
  return (stream?.endedAt ?? Number.POSITIVE_INFINITY) - STREAM_END_MS;
}

function firstOfEachReceipt(handOuts: readonly HandOut[]): HandOut[] {
  const seen = new Set<string>();
  return handOuts.filter(({ receipt }) => !seen.has(receipt) && seen.add(receipt));
}

function pairs<T>(items: readonly T[]): [T, T][] {
  return items.slice(1).map((item, i) => [items[i] as T, item]);
}
