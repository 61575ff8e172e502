import { fromBinary } from "@bufbuild/protobuf";
import { BadRequestSchema, ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { type ErrorCode, REFUSALS, type Refusal } from "../errors.ts";

/** An error as REST answers it. */
export interface RestError {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  /** JSON: `{"error":{...}}`. */
  readonly body: string;
}

/** What is known of an error, whatever brought it. */
interface ErrorFacts {
  /** The status name of gRPC and Connect, in lower case. */
  readonly code: string;
  readonly message: string;
  readonly reason?: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly violations: readonly { readonly field: string; readonly message: string }[];
}

const STATUS: ReadonlyMap<string, number> = new Map<ErrorCode | "canceled" | "out_of_range", number>([
  ["canceled", 499],
  ["invalid_argument", 400],
  ["failed_precondition", 400],
  ["out_of_range", 400],
  ["unauthenticated", 401],
  ["permission_denied", 403],
  ["not_found", 404],
  ["already_exists", 409],
  ["aborted", 409],
  ["resource_exhausted", 429],
  ["unimplemented", 501],
  ["unavailable", 503],
  ["deadline_exceeded", 504],
]);

/** The error for what is our fault: it says nothing but where to look for it. */
export function faultError(requestId: string): RestError {
  return restError({ code: "internal", message: "", metadata: {}, violations: [] }, requestId);
}

/** The error for a refusal of the REST face itself. */
export function refusalError(refusal: Refusal, requestId: string): RestError {
  const { code, message, reason, metadata } = refusal;
  return restError({ code, message, reason, metadata, violations: [] }, requestId);
}

/**
 * The error for the JSON of a Connect error: the body of a unary answer, or `error` of the end of a stream.
 * Anything else is taken for a fault.
 */
export function connectError(json: unknown, requestId: string): RestError {
  const facts = factsOf(json);
  return facts === undefined ? faultError(requestId) : restError(facts, requestId);
}

function restError(facts: ErrorFacts, requestId: string): RestError {
  const { reason, metadata, violations } = facts;
  const special = reason === undefined || !isReason(reason) ? undefined : restOf(reason);
  const known = STATUS.get(facts.code);
  const details = Object.keys(metadata).length === 0 ? violations : [...violations, metadata];
  const status = special?.status ?? known ?? 500;
  const error = {
    code: special?.code ?? (known === undefined ? "INTERNAL" : facts.code.toUpperCase()),
    message: known === undefined ? "internal error" : facts.message,
    ...(reason === undefined ? {} : { reason }),
    details: known === undefined ? [] : details,
    request_id: requestId,
  };
  const headers: Record<string, string> = status === 401 ? { "www-authenticate": "Bearer" } : {};
  return { status, headers, body: JSON.stringify({ error }) };
}

function isReason(reason: string): reason is keyof typeof REFUSALS {
  return Object.hasOwn(REFUSALS, reason);
}

function restOf(reason: keyof typeof REFUSALS): { readonly status: number; readonly code?: string } | undefined {
  const row = REFUSALS[reason];
  return "rest" in row ? row.rest : undefined;
}

function factsOf(json: unknown): ErrorFacts | undefined {
  if (!isRecord(json) || typeof json["code"] !== "string") return undefined;
  const details = Array.isArray(json["details"]) ? json["details"].filter(isRecord) : [];
  const bytesOf = (type: string): Uint8Array | undefined => {
    const detail = details.find((candidate) => candidate["type"] === type);
    return typeof detail?.["value"] === "string" ? Buffer.from(detail["value"], "base64") : undefined;
  };
  const infoBytes = bytesOf(ErrorInfoSchema.typeName);
  const badRequestBytes = bytesOf(BadRequestSchema.typeName);
  const info = infoBytes === undefined ? undefined : fromBinary(ErrorInfoSchema, infoBytes);
  const badRequest = badRequestBytes === undefined ? undefined : fromBinary(BadRequestSchema, badRequestBytes);
  return {
    code: json["code"],
    message: typeof json["message"] === "string" ? json["message"] : "",
    ...(info === undefined ? {} : { reason: info.reason }),
    metadata: info?.metadata ?? {},
    violations: (badRequest?.fieldViolations ?? []).map(({ field, description }) => ({ field, message: description })),
  };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
