import type { ConnectRouterOptions } from "@connectrpc/connect";
import { compressionGzip } from "@connectrpc/connect-node";
import type { Config } from "../config.ts";
import type { Logger } from "../log.ts";
import type { Principal } from "./context.ts";
import { accessLog } from "./interceptors/access-log.ts";
import { deadline } from "./interceptors/deadline.ts";
import { refusals } from "./interceptors/refusals.ts";
import { validate } from "./interceptors/validate.ts";
import { keyGate } from "./key-gate.ts";
import { OPEN_SERVICES, SERVICES } from "./routes.ts";

/** The longest timeout that a caller may ask for: what a timer of Node can count, in milliseconds (25 days). */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;

/** What the process lends to every call. */
export interface Serving {
  /** Aborted when the process starts to drain; it ends the calls that would not end by themselves. */
  readonly shutdownSignal: AbortSignal;
  /** Told of what is our fault, with what is known of the call. */
  readonly onFault: (fault: unknown, about?: object) => void;
  /** The key of development mode, if that is what runs. */
  readonly developmentKey: string | undefined;
  /** The caller that a key with this hash makes. */
  readonly findPrincipal: (keyHash: Buffer) => Promise<Principal | undefined>;
}

/** What every call goes through, whatever its protocol. */
export function callOptions(config: Config, log: Logger, serving: Serving): ConnectRouterOptions {
  const { onFault } = serving;
  const access = accessLog(log);
  const check = keyGate({
    findPrincipal: serving.findPrincipal,
    openServices: OPEN_SERVICES,
    developmentKey: serving.developmentKey,
    onFault,
  });
  return {
    requestGate: access.gate(check),
    interceptors: [
      access.interceptor,
      refusals((fault, call) => onFault(fault, { method: call.method, request_id: call.requestId })),
      deadline(),
      validate(SERVICES),
    ],
    // Connect's JSON reads as REST's does: the contract's names, nothing left out, unknown fields let pass.
    jsonOptions: { useProtoFieldName: true, alwaysEmitImplicit: true, ignoreUnknownFields: true },
    // Brotli is left out: at Node's default quality it costs a hundred times gzip's time.
    acceptCompression: [compressionGzip],
    readMaxBytes: requestLimit(config),
    maxTimeoutMs: MAX_TIMEOUT_MS,
    shutdownSignal: serving.shutdownSignal,
  };
}

/** Most bytes of a request: room for a few of the largest payloads in base64, and for a batch of small ones. */
export function requestLimit(config: Config): number {
  return Math.max(4 * 1_048_576, 2 * config.maxPayloadBytes + 1_048_576);
}

/** The caller that a project's row makes; undefined for none. */
export function principalOf(
  row: { project_id: string; strict_path_body: boolean; strict_fields: boolean } | undefined,
): Principal | undefined {
  if (row === undefined) return undefined;
  return { projectId: row.project_id, strictPathBody: row.strict_path_body, strictFields: row.strict_fields };
}
