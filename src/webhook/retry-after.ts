/** The longest wait that a receiver can ask for: a day. Above it lies a mistake or an attempt to park the work. */
export const MAX_ASKED_MS = 86_400_000;

/** A date in the form that HTTP sends (RFC 9110 section 5.6.7), not whatever else Date.parse would accept. */
const HTTP_DATE = /^(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT$/;

/**
 * How long a `Retry-After` header asks to wait, in milliseconds from `nowMs` (Unix time): 0 to 86,400,000, where longer
 * waits are cut to a day and dates in the past are 0. Undefined when the value is neither whole seconds nor a date.
 */
export function retryAfterMs(value: string, nowMs: number): number | undefined {
  const text = value.trim();
  let waitMs: number;
  if (/^\d+$/.test(text)) {
    waitMs = Number(text) * 1_000;
  } else if (HTTP_DATE.test(text)) {
    waitMs = Date.parse(text) - nowMs;
  } else {
    return undefined;
  }
  return Number.isNaN(waitMs) ? undefined : Math.min(Math.max(waitMs, 0), MAX_ASKED_MS);
}
