import type { IncomingMessage, ServerResponse } from "node:http";
import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";

/** A request of Node's HTTP/1 server or of the compatibility layer of its HTTP/2 server. */
export type RestRequest = IncomingMessage | Http2ServerRequest;
/** The response to a {@link RestRequest}. */
export type RestResponse = ServerResponse | Http2ServerResponse;

/** Header that tells of what was odd about a request and did not fail it. One line per warning. */
const WARNING_HEADER = "x-scheduling-warning";

/** Describe the transport of the REST request or its body; the call behind it has its own. */
const NOT_FORWARDED: ReadonlySet<string> = new Set([
  "accept-encoding",
  "connect-accept-encoding",
  "connect-content-encoding",
  "connection",
  "content-encoding",
  "content-length",
  "content-type",
  "expect",
  "host",
  "keep-alive",
  "transfer-encoding",
  "upgrade",
]);

const NOT_RETURNED = /^(content-(type|length|encoding)$|connection$|transfer-encoding$|date$|connect-|grpc-|trailer)/;

/** The headers of the call behind a REST request. The caller's Connect-Timeout-Ms stays. */
export function callHeaders(request: RestRequest, contentType: string, requestId: string): Headers {
  const headers = new Headers();
  for (const [name, value] of Object.entries(request.headers)) {
    if (value === undefined || name.startsWith(":") || NOT_FORWARDED.has(name)) continue;
    for (const line of Array.isArray(value) ? value : [value]) headers.append(name, line);
  }
  headers.set("content-type", contentType);
  headers.set("connect-protocol-version", "1");
  headers.set("x-request-id", requestId);
  return headers;
}

/** Puts the headers of the call's answer on the REST response, and adds the warnings of the decoding. */
export function returnHeaders(from: Headers | undefined, warnings: readonly string[], response: RestResponse): void {
  const lines = [...warnings];
  for (const [name, value] of from ?? []) {
    if (name === WARNING_HEADER) lines.unshift(value);
    else if (!NOT_RETURNED.test(name)) response.setHeader(name, value);
  }
  if (lines.length > 0) response.setHeader(WARNING_HEADER, lines);
}
