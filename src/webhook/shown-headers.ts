import type { IncomingHttpHeaders } from "node:http";
import { HIDDEN, hideCredentials } from "../domain/credentials.ts";

/**
 * Response headers that the record of an attempt keeps: what explains an outcome. None that tells what software answers,
 * or sets a cookie.
 */
const KEPT =
  /^(allow|cache-control|cf-ray|content-encoding|content-length|content-type|date|retry-after|carillon-control|webhook-delivery|traceparent|(x-)?ratelimit(-[a-z-]+)?|(x-)?(request|correlation|trace)-id|x-amzn-requestid|x-amz-cf-id)$/;
/** Characters that are kept of a value. */
export const MAX_VALUE = 256;
/** How many headers are kept. */
const MAX_KEPT = 24;

/** The headers that were sent, as they are recorded: without credentials, and without what could be sent once more. */
export function shownRequestHeaders(headers: Readonly<Record<string, string>>): Record<string, string> {
  return { ...hideCredentials(headers), ...("webhook-signature" in headers && { "webhook-signature": HIDDEN }) };
}

/** Those of the response's headers that are recorded. */
export function shownResponseHeaders(headers: IncomingHttpHeaders): Record<string, string> {
  const kept = Object.entries(headers).flatMap(([name, value]): [string, string][] =>
    value === undefined || !KEPT.test(name) ? [] : [[name, [value].flat().join(", ").slice(0, MAX_VALUE)]],
  );
  return Object.fromEntries(kept.slice(0, MAX_KEPT));
}
