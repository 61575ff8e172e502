import { randomUUID } from "node:crypto";
import type { Db } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import { endpointOf } from "../domain/endpoint.ts";
import type { HealthNotes } from "../domain/endpoint-health.ts";
import { judgeEndpoint, type NotedEndpoint, recordHealth } from "../store/endpoint-health.ts";
import type { AttemptOutcome } from "../webhook/post.ts";
import type { FlightEnd } from "./in-flight.ts";

/** An attempt that has ended. */
export interface WatchedAttempt {
  readonly projectId: string;
  readonly url: string;
  readonly outcome: AttemptOutcome;
  /** Its end decides over the breaker. */
  readonly probe: boolean;
  /** How much of the attempts of its run or message it was the end of, in percent. */
  readonly spentPercent: number;
}

export interface EndpointWatchOptions {
  readonly db: Db;
  readonly wakeups?: Wakeups | undefined;
  /** Told of health that could not be written down; what it counted is lost. */
  readonly onFault: (fault: unknown) => void;
}

type Notes = { -readonly [Key in keyof HealthNotes]: HealthNotes[Key] };

/** How long what was seen stays in memory, in milliseconds: a node that is killed loses as much of its endpoints' counts. */
const FLUSH_MS = 200;

/**
 * Sees how requests end, and tells the database a few times a second, all endpoints of a project at once. Most requests
 * succeed, and cost no statement of their own.
 */
export class EndpointWatch implements AsyncDisposable {
  readonly #options: EndpointWatchOptions;
  readonly #part = randomUUID();
  #seen = new Map<string, Map<string, { readonly address: string; readonly notes: Notes }>>();
  #timer: NodeJS.Timeout | undefined;
  #flushing: Promise<void> = Promise.resolve();

  constructor(options: EndpointWatchOptions) {
    this.#options = options;
  }

  /** Never waits and never throws. */
  note({ projectId, url, outcome, probe, spentPercent }: WatchedAttempt): void {
    const end = flightEnd(outcome);
    const throttled = outcome.kind === "rejected" && outcome.throttled;
    if (end === "neither" && !throttled && !isDisabling(outcome)) return;
    const { endpointId, address } = endpointOf(url);
    const ofProject = this.#seen.get(projectId) ?? new Map();
    this.#seen.set(projectId, ofProject);
    const seen = ofProject.get(endpointId) ?? { address, notes: newNotes() };
    ofProject.set(endpointId, seen);
    addTo(seen.notes, outcome, { end, throttled, probe, spentPercent });
    this.#timer ??= setTimeout(() => void this.flush(), FLUSH_MS);
  }

  /** Writes down what was seen until now, after what is being written already. */
  flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const seen = this.#seen;
    this.#seen = new Map();
    this.#flushing = this.#flushing.then(async () => {
      for (const [projectId, endpoints] of seen) {
        const noted = [...endpoints].map(([endpointId, rest]) => ({ endpointId, ...rest }));
        await this.#tell(projectId, noted).catch(this.#options.onFault);
      }
    });
    return this.#flushing;
  }

  async #tell(projectId: string, noted: readonly NotedEndpoint[]): Promise<void> {
    const { db, wakeups } = this.#options;
    const troubled = await recordHealth(db, this.#part, projectId, noted);
    let due = false;
    for (const one of noted) {
      if (!troubled.has(one.endpointId)) continue;
      const judgement = await db.transaction().execute((trx) => judgeEndpoint(trx, projectId, one));
      due ||= judgement?.due ?? false;
    }
    if (due) wakeups?.wake("runs");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.flush();
  }
}

/**
 * What an outcome says about the endpoint. Attempts that we cut off or could not make say nothing; neither does a receiver that
 * says what it wants.
 */
export function flightEnd(outcome: AttemptOutcome): FlightEnd {
  if (outcome.kind === "delivered") return "succeeded";
  if (outcome.kind === "rejected") return outcome.status === 429 || outcome.permanent ? "neither" : "failed";
  return outcome.error === "cancelled" || outcome.error === "request_invalid" ? "neither" : "failed";
}

function newNotes(): Notes {
  return {
    succeeded: 0,
    failed: 0,
    throttled: 0,
    askedWaitMs: undefined,
    probes: [],
    gone: undefined,
    spentPercent: 0,
    failure: undefined,
  };
}

function addTo(
  notes: Notes,
  outcome: AttemptOutcome,
  {
    end,
    throttled,
    probe,
    spentPercent,
  }: Pick<WatchedAttempt, "probe" | "spentPercent"> & {
    readonly end: FlightEnd;
    readonly throttled: boolean;
  },
): void {
  if (end === "succeeded") notes.succeeded += 1;
  if (end === "failed") notes.failed += 1;
  if (probe && end !== "neither") notes.probes = [...notes.probes, end === "succeeded"];
  if (isDisabling(outcome)) notes.gone = wordsOf(outcome);
  if (outcome.kind === "delivered") return;
  notes.spentPercent = Math.max(notes.spentPercent, spentPercent);
  notes.failure = outcome.kind === "failed" ? outcome.error : `HTTP ${outcome.status}`;
  if (outcome.kind !== "rejected") return;
  if (!throttled) return;
  notes.throttled += 1;
  if (outcome.retryAfterMs !== undefined) notes.askedWaitMs = Math.max(notes.askedWaitMs ?? 0, outcome.retryAfterMs);
}

function isDisabling(outcome: AttemptOutcome): boolean {
  return outcome.kind !== "failed" && outcome.disable;
}

function wordsOf(outcome: AttemptOutcome): string {
  return outcome.kind === "rejected" && outcome.status === 410
    ? "the receiver answered 410"
    : "the receiver asked for it";
}
