import { cors } from "@connectrpc/connect";
import type { NodeRequest, NodeResponse } from "./one-port.ts";

export interface CorsOptions {
  /** Origins whose pages may call, such as `https://console.example.com`: scheme, host and port, compared exactly. */
  readonly allowedOrigins: readonly string[];
  /** Whether pages of any loopback origin may call too. For development only. */
  readonly allowLoopback: boolean;
}

const ALLOWED_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"].join(", ");
const ALLOWED_HEADERS = [
  ...cors.allowedHeaders,
  "Authorization",
  "Idempotency-Key",
  "X-Request-Id",
  "Traceparent",
  "Tracestate",
].join(", ");
const EXPOSED_HEADERS = [
  ...cors.exposedHeaders,
  "X-Scheduling-Warning",
  "Idempotency-Replayed",
  "X-Request-Id",
  "Retry-After",
].join(", ");
/** Seconds that a browser may remember a preflight. Chromium caps it at this. */
const MAX_AGE_SECONDS = "7200";

/**
 * Sets the CORS headers of a response and answers preflights; true means answered. Credentials (cookies) are never
 * allowed: callers identify themselves by the Authorization header, which a page cannot send without a preflight.
 */
export function createCors(options: CorsOptions): (request: NodeRequest, response: NodeResponse) => boolean {
  const allowed = new Set(options.allowedOrigins);

  return (request, response) => {
    response.setHeader("vary", "origin");
    const origin = request.headers.origin;
    if (origin === undefined) return false;
    const isPreflight = request.method === "OPTIONS" && request.headers["access-control-request-method"] !== undefined;
    if (allowed.has(origin) || (options.allowLoopback && isLoopbackOrigin(origin))) {
      response.setHeader("access-control-allow-origin", origin);
      if (isPreflight) {
        response.setHeader("access-control-allow-methods", ALLOWED_METHODS);
        response.setHeader("access-control-allow-headers", ALLOWED_HEADERS);
        response.setHeader("access-control-max-age", MAX_AGE_SECONDS);
      } else {
        response.setHeader("access-control-expose-headers", EXPOSED_HEADERS);
      }
    }
    if (!isPreflight) return false;
    response.writeHead(204);
    response.end();
    return true;
  };
}

/** Whether `origin` is a page of this machine, of any port: `localhost` or a name under it, 127.0.0.0/8 or ::1. */
function isLoopbackOrigin(origin: string): boolean {
  const url = URL.parse(origin);
  if (url === null || (url.protocol !== "http:" && url.protocol !== "https:")) return false;
  const host = url.hostname;
  // The URL parser has normalised IPv4 by now, so four decimal numbers are an address and not a domain.
  return host === "localhost" || host.endsWith(".localhost") || host === "[::1]" || /^127\.\d+\.\d+\.\d+$/.test(host);
}
