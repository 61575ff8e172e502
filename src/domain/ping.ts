import { hash, randomBytes } from "node:crypto";

/** What a ping tells of a run. */
export type PingSignal = "start" | "success" | "fail" | "log";

/** A ping, as it is taken. */
export interface Ping {
  readonly signal: PingSignal;
  readonly exitCode: number | null;
  /** What the pings of one run share. */
  readonly rid: string | null;
  /** Null when it carried nothing. */
  readonly body: string | null;
}

/** What ping tokens begin with, so that secret scanners and people know them. */
const PREFIX = "ping_";
/** 24 bytes are 192 random bits, and 32 characters. */
const RANDOM_BYTES = 24;
const SHAPE = /^ping_[A-Za-z0-9_-]{32}$/;
const MAX_EXIT_CODE = 255;
/** Most bytes of a ping's body that are kept. */
const MAX_PING_BODY = 10_240;
/** The earliest that a ping may come before the fire that it is of. */
const MAX_EARLY_MS = 60_000;

/** A new token. */
export function newPingToken(): string {
  return PREFIX + randomBytes(RANDOM_BYTES).toString("base64url");
}

/** Whether a text has the form of a token; no other needs to be looked up. */
export function isPingToken(text: string): boolean {
  return SHAPE.test(text);
}

/** What is stored of a token to find it by. */
export function hashPingToken(token: string): Buffer {
  return hash("sha256", token, "buffer");
}

/** The signal that a caller has written, `success` for none; undefined when it is none. */
export function parseSignal(text: string): Pick<Ping, "signal" | "exitCode"> | undefined {
  switch (text) {
    case "":
      return { signal: "success", exitCode: null };
    case "start":
    case "success":
    case "fail":
    case "log":
      return { signal: text, exitCode: null };
    default: {
      const exitCode = Number(text);
      if (!/^[0-9]{1,3}$/.test(text) || exitCode > MAX_EXIT_CODE) return undefined;
      return { signal: exitCode === 0 ? "success" : "fail", exitCode };
    }
  }
}

/** The body of a ping as it is kept: text that can be stored, cut with a note; null for no bytes. */
export function pingBody(bytes: Uint8Array): string | null {
  if (bytes.length === 0) return null;
  const kept = new TextDecoder().decode(bytes.subarray(0, MAX_PING_BODY)).replaceAll("\0", "\ufffd");
  return bytes.length > MAX_PING_BODY ? `${kept}\n[cut: only the first ${MAX_PING_BODY} bytes are kept]` : kept;
}

/**
 * Whether a ping at `now` may be of the fire at `next` that is still to come: clocks differ. Where fires are close, it is of
 * the one that it is nearer to. `after` is the fire that follows; undefined for none.
 */
export function isOfNextFire(now: Date, next: Date, after: Date | undefined): boolean {
  const half = after === undefined ? MAX_EARLY_MS : (after.getTime() - next.getTime()) / 2;
  return next.getTime() - now.getTime() <= Math.min(MAX_EARLY_MS, half);
}

/** Pings that a monitor takes at once, and that it gets back in a minute. */
const BURST = 60;
export const PINGS_PER_MINUTE = 120;

/** What is left of a monitor's pings. */
export interface PingAllowance {
  readonly left: number;
  /** In milliseconds of any clock. */
  readonly atMs: number;
}

/** The allowance after one more ping at `nowMs`; undefined when there is none left for it. */
export function takePingAllowance(before: PingAllowance | undefined, nowMs: number): PingAllowance | undefined {
  const gained = before === undefined ? BURST : ((nowMs - before.atMs) * PINGS_PER_MINUTE) / 60_000;
  const left = Math.min(BURST, (before?.left ?? 0) + gained) - 1;
  return left < 0 ? undefined : { left, atMs: nowMs };
}
