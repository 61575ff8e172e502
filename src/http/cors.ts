import type { IncomingHttpHeaders } from "node:http";
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

/** Answers to what browsers ask before they let a page call or read an answer. */
export interface Cors {
  /** The fields that every answer to such a request has. */
  fields(method: string | undefined, headers: IncomingHttpHeaders): Record<string, string>;
  /** Answers a preflight, whose response has the fields; true means answered. */
  answerPreflight(request: NodeRequest, response: NodeResponse): boolean;
}

/**
 * CORS for the origins of the options. Credentials (cookies) are never allowed: callers identify themselves by the
 * Authorization header, which a page cannot send without a preflight.
 */
export function createCors(options: CorsOptions): Cors {
  const allowed = new Set(options.allowedOrigins);
  const isAllowed = (origin: string) => allowed.has(origin) || (options.allowLoopback && isLoopbackOrigin(origin));

  return {
    fields(method, headers) {
      const { origin } = headers;
      if (origin === undefined || !isAllowed(origin)) return { vary: "origin" };
      const fields = { vary: "origin", "access-control-allow-origin": origin };
      return isPreflight(method, headers) ? fields : { ...fields, "access-control-expose-headers": EXPOSED_HEADERS };
    },
    answerPreflight({ method, headers }, response) {
      const { origin } = headers;
      if (origin === undefined || !isPreflight(method, headers)) return false;
      if (isAllowed(origin)) {
        response.setHeader("access-control-allow-methods", ALLOWED_METHODS);
        response.setHeader("access-control-allow-headers", ALLOWED_HEADERS);
        response.setHeader("access-control-max-age", MAX_AGE_SECONDS);
      }
      response.writeHead(204);
      response.end();
      return true;
    },
  };
}

function isPreflight(method: string | undefined, headers: IncomingHttpHeaders): boolean {
  return method === "OPTIONS" && headers["access-control-request-method"] !== undefined;
}

/** Whether `origin` is a page of this machine, of any port: `localhost` or a name under it, 127.0.0.0/8 or ::1. */
function isLoopbackOrigin(origin: string): boolean {
  const url = URL.parse(origin);
  if (url === null || (url.protocol !== "http:" && url.protocol !== "https:")) return false;
  const host = url.hostname;
  // The URL parser has normalised IPv4 by now, so four decimal numbers are an address and not a domain.
  return host === "localhost" || host.endsWith(".localhost") || host === "[::1]" || /^127\.\d+\.\d+\.\d+$/.test(host);
}
