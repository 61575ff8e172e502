import { createContextKey, type HandlerContext } from "@connectrpc/connect";
import type { Db } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import type { MoveClock } from "../domain/clock-move.ts";
import type { QueueTally } from "../store/queue-tally.ts";
import type { Vault } from "../vault/vault.ts";
import type { Egress } from "../webhook/post.ts";
import type { TargetPolicy } from "../webhook/target.ts";
import { Backlogs } from "./backlogs.ts";
import { HandOuts } from "./hand-outs.ts";
import {
  type Acks,
  createAcks,
  createPublishes,
  createSingleAcks,
  type Publishes,
  type SingleAcks,
} from "./shared-writes.ts";

/** What the process gives the handlers. */
export interface AppParts {
  readonly db: Db;
  readonly wakeups: Wakeups;
  /** Which URLs may be delivered to. */
  readonly targets: TargetPolicy;
  /** The way out, for deliveries whose outcome is the answer to a call. */
  readonly egress: Egress;
  readonly limits: ApiLimits;
  /** Counts what is done with queues. */
  readonly tally: QueueTally;
  /** Seals what is secret before it is stored. */
  readonly vault: Vault;
  /** Moves the clock, where it is virtual. */
  readonly moveClock?: MoveClock | undefined;
}

/** All that a handler may touch. */
export interface AppContext extends AppParts {
  /** Stores plain messages; undefined where a queue is missing. */
  readonly publishes: Publishes;
  /** Acks deliveries in lines. */
  readonly acks: Acks;
  /** Acks all other deliveries. */
  readonly singleAcks: SingleAcks;
  readonly handOuts: HandOuts;
  readonly backlogs: Backlogs;
}

/** One for the process, whatever protocols it serves, so that all its callers share statements. */
export function createAppContext(parts: AppParts): AppContext {
  const handOuts = new HandOuts(parts.db, parts.wakeups, parts.tally, parts.limits.maxPayloadBytes);
  return {
    ...parts,
    publishes: createPublishes(parts.db, handOuts),
    acks: createAcks(parts.db),
    singleAcks: createSingleAcks(parts.db),
    handOuts,
    backlogs: new Backlogs(parts.db),
  };
}

/** Limits that the operator sets. */
export interface ApiLimits {
  /** Largest payload of a message, cron job or task, in bytes. */
  readonly maxPayloadBytes: number;
  /** How long an idempotency key is remembered, in seconds. */
  readonly idempotencySeconds: number;
  /** Whether publishing to an unknown queue creates it. */
  readonly autoCreateQueues: boolean;
}

/** Who calls: the project that the API key belongs to. */
export interface Principal {
  readonly projectId: string;
  readonly strictPathBody: boolean;
  readonly strictFields: boolean;
}

/** Where the key check leaves the principal for the handlers. */
export const principalKey = createContextKey<Principal | undefined>(undefined, { description: "principal" });

/** The project of the caller. Every statement that a handler causes is confined to it. */
export function projectOf(ctx: HandlerContext): string {
  const principal = ctx.values.get(principalKey);
  if (principal === undefined) throw new Error("a handler ran without the key check");
  return principal.projectId;
}

/**
 * Tells the caller something that is no error, in the header X-Scheduling-Warning. Characters that a header cannot carry
 * become question marks.
 */
export function warn(ctx: HandlerContext, warning: string): void {
  ctx.responseHeader.append("x-scheduling-warning", warning.replace(/[^\x20-\x7e]/g, "?"));
}
