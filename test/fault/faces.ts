import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";

/** What a caller knows. `unknown` is neither a yes nor a no: the call may have taken effect. */
export type Answer<T> =
  | { readonly kind: "ok"; readonly value: T }
  | { readonly kind: "unknown"; readonly why: string }
  | { readonly kind: "refused"; readonly why: string };

/** A message to publish. */
export interface Draft {
  readonly n: number;
  readonly group: string;
  readonly delayMs: number;
}

/** A message as a consumer is given it. */
export interface Delivery {
  readonly messageId: string;
  readonly receipt: string;
  readonly attempts: number;
  /** Milliseconds on the server's clock. */
  readonly leaseExpiresAt: number;
  /** Undefined: its payload is none of ours. */
  readonly n: number | undefined;
}

export interface Pull {
  readonly maxMessages: number;
  readonly waitSeconds: number;
  readonly leaseSeconds: number;
  readonly requestId: string;
}

/** What the answer to an ack, nack or extend said. */
export interface Verdict {
  readonly done: boolean;
  readonly already: boolean;
  readonly reason: string;
}

/** What an ack, nack or extend names. */
export type Held = Pick<Delivery, "messageId" | "receipt">;

export type Settle = (
  url: string,
  queue: string,
  verb: "ack" | "nack" | "extend",
  held: Held,
  seconds: number,
) => Promise<Answer<Verdict>>;

export interface StreamOptions {
  readonly maxUnacked: number;
  readonly leaseSeconds: number;
}

/** The calls of a queue's clients over one protocol. None rejects but `stream`, when the stream breaks. */
export interface Face {
  readonly name: string;
  /** Publishes one message, or several in a batch. The key is left out where it is empty. */
  publish(url: string, queue: string, drafts: readonly Draft[], key: string): Promise<Answer<readonly string[]>>;
  pull(url: string, queue: string, pull: Pull): Promise<Answer<readonly Delivery[]>>;
  readonly settle: Settle;
  /** Acks several messages in one call. */
  ackAll(url: string, queue: string, held: readonly Held[]): Promise<Answer<readonly Verdict[]>>;
  stream(url: string, queue: string, options: StreamOptions, signal: AbortSignal): AsyncGenerator<readonly Delivery[]>;
}

/** A stream that settles what it hands out in the same call. */
export interface Session {
  /** Rejects when the session breaks. */
  readonly deliveries: AsyncGenerator<readonly Delivery[]>;
  /** As `Face.settle`, by the session while it lives; the url and the queue are the session's own. Undefined: it is over. */
  settle(...request: Parameters<Settle>): ReturnType<Settle> | undefined;
}

/** Most time for a call beyond what it may wait, in milliseconds. */
export const CALL_MS = 10_000;
/** What REST answers where the same call may succeed at once, or in a while, though it may also have had its effect. */
export const UNSETTLED = new Set(["WRITE_CONFLICT", "IDEMPOTENCY_KEY_IN_USE", "DATABASE_TIMEOUT", "KEY_LOOKUPS_BUSY"]);

/** Why a REST stream ends that was not refused. */
const BREAKS = new Set(["DATABASE_UNAVAILABLE", "SHUTTING_DOWN", ...UNSETTLED]);

/** About 200 bytes that follow from a number, so that a payload which was changed on its way shows. */
export function payloadOf(n: number): { readonly n: number; readonly filler: string } {
  return { n, filler: `${(n * 2_654_435_761) % 2 ** 32}`.padStart(180, ".") };
}

export function numberOf(payload: unknown): number | undefined {
  const { n, filler } = Object(payload) as Partial<ReturnType<typeof payloadOf>>;
  return typeof n === "number" && filler === payloadOf(n).filler ? n : undefined;
}

/** Reads the answer to an ack, nack or extend, from a message or from JSON. */
export function verdictOf(answer: {
  readonly acked?: boolean | undefined;
  readonly nacked?: boolean | undefined;
  readonly extended?: boolean | undefined;
  readonly already?: boolean | undefined;
  readonly reason?: string | undefined;
}): Verdict {
  const { acked, nacked, extended, already = false, reason = "" } = answer;
  return { done: (acked ?? nacked ?? extended) === true, already, reason };
}

/** Whether a stream ended as streams do when a node or the database dies, rather than with a refusal. */
export function isBreak(error: unknown): boolean {
  if (error instanceof ConnectError) return isUnknown(error);
  const { name, message } = error as Error;
  return name === "TypeError" || name === "AbortError" || BREAKS.has(message);
}

/** Whether the error leaves open what the call did: it came from a broken connection, or says so itself. */
export function isUnknown(error: ConnectError): boolean {
  const reason = error.findDetails(ErrorInfoSchema)[0]?.reason;
  if (reason !== undefined) return UNSETTLED.has(reason) || error.code === Code.Unavailable;
  const isServersFault = error.code === Code.Internal && error.rawMessage === "internal error";
  return !isServersFault && error.code !== Code.Unknown && error.code !== Code.Unimplemented;
}
