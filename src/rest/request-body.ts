import type { IncomingMessage } from "node:http";
import type { Http2ServerRequest } from "node:http2";
import { promisify } from "node:util";
import { gunzip } from "node:zlib";
import { Code, ConnectError } from "@connectrpc/connect";
import { Refusal } from "../errors.ts";
import { printable } from "./findings.ts";

const gunzipAsync = promisify(gunzip);

/** What is read as JSON. Plain `curl -d` says application/x-www-form-urlencoded. */
const JSON_TYPES: ReadonlySet<string> = new Set([
  "",
  "application/json",
  "text/json",
  "text/plain",
  "application/x-www-form-urlencoded",
]);

/** Bounds for reading one body. */
export interface BodyLimits {
  /** Most bytes, as sent and decompressed. */
  readonly maxBytes: number;
  /** Longest time from the first read to the last byte, in milliseconds. */
  readonly timeoutMs: number;
}

/**
 * Reads the whole body of a request and decompresses it. Where it stops early, the rest stays unread.
 *
 * @throws Refusal BODY_TOO_LARGE, BODY_TYPE_UNSUPPORTED (only when there is a body), BODY_ENCODING_UNSUPPORTED,
 * BODY_INVALID for damaged gzip data, BODY_TIMEOUT.
 * @throws ConnectError canceled when the client goes away.
 */
export async function readBody(request: IncomingMessage | Http2ServerRequest, limits: BodyLimits): Promise<Uint8Array> {
  if (Number(request.headers["content-length"] ?? 0) > limits.maxBytes) throw tooLarge(limits);
  const sent = await receive(request, limits);
  if (sent.length === 0) return sent;
  const encoding = (request.headers["content-encoding"] ?? "").trim().toLowerCase();
  return encoding === "gzip" || encoding === "x-gzip" ? unzip(sent, limits) : sent;
}

/**
 * Reads the first bytes of a body of any type, as they were sent, up to `maxBytes`. The rest stays unread.
 *
 * @throws Refusal BODY_TIMEOUT. @throws ConnectError canceled when the client goes away.
 */
export function readBeginning(request: IncomingMessage | Http2ServerRequest, limits: BodyLimits): Promise<Uint8Array> {
  return receive(request, limits, "beginning");
}

async function unzip(sent: Buffer, limits: BodyLimits): Promise<Uint8Array> {
  try {
    return await gunzipAsync(sent, { maxOutputLength: limits.maxBytes });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE") throw tooLarge(limits);
    throw new Refusal("BODY_INVALID", { detail: "the gzip data is damaged" });
  }
}

function receive(
  request: IncomingMessage | Http2ServerRequest,
  limits: BodyLimits,
  what: "JSON" | "beginning" = "JSON",
): Promise<Buffer> {
  if (request.readableEnded) return Promise.resolve(Buffer.alloc(0));
  if (request.destroyed) return Promise.reject(new ConnectError("the client went away", Code.Canceled));
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const chunks: Buffer[] = [];
  let length = 0;

  const onData = (chunk: Buffer): void => {
    length += chunk.length;
    chunks.push(chunk);
    if (what === "beginning") {
      if (length >= limits.maxBytes) {
        request.pause();
        onEnd();
      }
      return;
    }
    const refusal = length > limits.maxBytes ? tooLarge(limits) : unsupported(request);
    if (refusal !== undefined) fail(refusal);
  };
  const onEnd = (): void => {
    detach();
    resolve(Buffer.concat(chunks, Math.min(length, limits.maxBytes)));
  };
  const onGone = (): void => fail(new ConnectError("the client went away", Code.Canceled));
  const timer = setTimeout(() => fail(new Refusal("BODY_TIMEOUT")), limits.timeoutMs);
  const fail = (error: Error): void => {
    detach();
    request.pause();
    reject(error);
  };
  const detach = (): void => {
    clearTimeout(timer);
    request.off("data", onData).off("end", onEnd).off("close", onGone).off("error", onGone);
    // A connection may still break after this, and that is no fault.
    request.on("error", () => {});
  };
  request.on("data", onData).on("end", onEnd).on("close", onGone).on("error", onGone);
  return promise;
}

function unsupported({ headers }: IncomingMessage | Http2ServerRequest): Refusal | undefined {
  const encoding = (headers["content-encoding"] ?? "").trim().toLowerCase();
  if (!["", "identity", "gzip", "x-gzip"].includes(encoding)) {
    return new Refusal("BODY_ENCODING_UNSUPPORTED", { encoding: printable(encoding) });
  }
  const type = (headers["content-type"]?.split(";", 1)[0] ?? "").trim().toLowerCase();
  if (JSON_TYPES.has(type) || type.endsWith("+json")) return undefined;
  return new Refusal("BODY_TYPE_UNSUPPORTED", { type: printable(type) });
}

function tooLarge({ maxBytes }: BodyLimits): Refusal {
  return new Refusal("BODY_TOO_LARGE", { limit: String(maxBytes) });
}
