import { Code, ConnectError } from "@connectrpc/connect";
import type { UniversalServerResponse } from "@connectrpc/connect/protocol";
import { codeToHttpStatus, errorFromJsonBytes, errorToJsonBytes } from "@connectrpc/connect/protocol-connect";
import { Refusal } from "../errors.ts";
import { toConnectError } from "../rpc/refusal.ts";

/** How Connect-ES begins the error of a binary message that it cannot parse. Nothing else that we let out begins so. */
const PARSE_ERROR = "parse binary: ";
/** An error of Connect is a small JSON object; one this long is none of those. */
const MAX_ERROR_BYTES = 64 * 1_024;

/** The error that a Connect call is answered with for this one: `invalid_argument` when it is about parsing a message. */
export function refusalOfMalformed(error: ConnectError): ConnectError {
  if (error.code !== Code.Internal || !error.rawMessage.startsWith(PARSE_ERROR)) return error;
  return toConnectError(new Refusal("MESSAGE_INVALID", { detail: error.rawMessage.slice(PARSE_ERROR.length) }));
}

/**
 * The response, but a Connect call whose message could not be parsed is answered with `invalid_argument` and 400.
 *
 * Connect-ES answers it with `internal` and 500, as if the fault were ours, and offers no hook. gRPC keeps INTERNAL,
 * which is what its table of status codes has for a request that cannot be parsed.
 */
export async function refuseMalformed(response: UniversalServerResponse): Promise<UniversalServerResponse> {
  const { status, header, body } = response;
  if (status !== 500 || header?.get("content-type") !== "application/json" || body === undefined) return response;
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of body) {
    chunks.push(chunk);
    size += chunk.length;
    if (size > MAX_ERROR_BYTES) break;
  }
  const bytes = Buffer.concat(chunks);
  const error = errorFromJsonBytes(bytes, undefined, new ConnectError("not an error of Connect", Code.Unknown));
  const refusal = refusalOfMalformed(error);
  if (refusal === error) return { ...response, body: once(bytes) };
  const answer = errorToJsonBytes(refusal, undefined);
  const headers = new Headers(header);
  headers.set("content-length", `${answer.length}`);
  return { ...response, status: codeToHttpStatus(refusal.code), header: headers, body: once(answer) };
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
