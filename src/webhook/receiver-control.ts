import type { IncomingHttpHeaders } from "node:http";
import { MAX_ASKED_MS, retryAfterMs } from "./retry-after.ts";

/** What a receiver says about the requests to come, beside its status. */
export interface ReceiverControl {
  /** No further attempt of this one, whatever its policy says. */
  readonly abort: boolean;
  /** No further requests at all: 410, or by a header with any status. */
  readonly disable: boolean;
  /** The next attempt after exactly this wait, in milliseconds: 0 to a day. */
  readonly retryInMs: number | undefined;
  /** The next attempt no earlier than after this wait, in milliseconds: 0 to a day. */
  readonly retryAfterMs: number | undefined;
}

/**
 * Reads what a receiver asks for, `nowMs` being Unix time:
 *
 * - `carillon-control`: `abort`, `disable`, and `retry-at=` with seconds since 1970 or an instant of RFC 3339; several are
 *   separated by commas, and what is none of these is passed over.
 * - `webhook-delivery`, as receivers for Svix send it: `abort-message`, `disable`.
 * - `Retry-After` in seconds or as a date; where there is none, with a 429 or 503, `RateLimit-Reset` or
 *   `X-RateLimit-Reset`, in seconds, as a date, or as seconds since 1970.
 */
export function receiverControl(status: number, headers: IncomingHttpHeaders, nowMs: number): ReceiverControl {
  const ours = directives(headers["carillon-control"]);
  const svix = directives(headers["webhook-delivery"]);
  const retryAt = ours.find((directive) => directive.startsWith("retry-at="));
  return {
    abort: ours.includes("abort") || svix.includes("abort-message"),
    disable: status === 410 || ours.includes("disable") || svix.includes("disable"),
    retryInMs: retryAt === undefined ? undefined : instantInMs(retryAt.slice("retry-at=".length), nowMs),
    retryAfterMs: askedWaitMs(status, headers, nowMs),
  };
}

/** The header's first value; a header that comes twice is given as a list. */
export function firstValue(headers: IncomingHttpHeaders, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

function directives(header: string | string[] | undefined): string[] {
  if (header === undefined) return [];
  return [header]
    .flat()
    .flatMap((value) => value.split(","))
    .map((directive) => directive.trim().toLowerCase());
}

function askedWaitMs(status: number, headers: IncomingHttpHeaders, nowMs: number): number | undefined {
  const retryAfter = firstValue(headers, "retry-after");
  const waitMs = retryAfter === undefined ? undefined : retryAfterMs(retryAfter, nowMs);
  if (waitMs !== undefined || (status !== 429 && status !== 503)) return waitMs;
  const reset = firstValue(headers, "ratelimit-reset") ?? firstValue(headers, "x-ratelimit-reset");
  return reset === undefined ? undefined : resetInMs(reset, nowMs);
}

/** Seconds above this are since 1970 rather than from now. */
const EPOCH_SECONDS = 1_000_000_000;

function resetInMs(reset: string, nowMs: number): number | undefined {
  const text = reset.trim();
  if (!/^\d{1,15}(\.\d{1,9})?$/.test(text)) return retryAfterMs(text, nowMs);
  const seconds = Number(text);
  return bounded(seconds > EPOCH_SECONDS ? seconds * 1_000 - nowMs : seconds * 1_000);
}

/** RFC 3339, in lower case as directives are. */
const INSTANT = /^\d{4}-\d{2}-\d{2}t\d{2}:\d{2}:\d{2}(\.\d{1,9})?(z|[+-]\d{2}:\d{2})$/;

function instantInMs(text: string, nowMs: number): number | undefined {
  if (/^\d{1,12}$/.test(text)) return bounded(Number(text) * 1_000 - nowMs);
  const at = INSTANT.test(text) ? Date.parse(text.toUpperCase()) : Number.NaN;
  return Number.isNaN(at) ? undefined : bounded(at - nowMs);
}

function bounded(waitMs: number): number {
  return Math.round(Math.min(Math.max(waitMs, 0), MAX_ASKED_MS));
}
