import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import type { ErrorCode, Refusal } from "../errors.ts";

/** `google.rpc.ErrorInfo.domain` of every error of this service. */
const ERROR_DOMAIN = "carillon";

const CODES: Readonly<Record<ErrorCode, Code>> = {
  invalid_argument: Code.InvalidArgument,
  not_found: Code.NotFound,
  already_exists: Code.AlreadyExists,
  permission_denied: Code.PermissionDenied,
  resource_exhausted: Code.ResourceExhausted,
  failed_precondition: Code.FailedPrecondition,
  aborted: Code.Aborted,
  unauthenticated: Code.Unauthenticated,
  unavailable: Code.Unavailable,
  unimplemented: Code.Unimplemented,
  deadline_exceeded: Code.DeadlineExceeded,
};

/** Metadata that only fills the message of a refusal with violations; the violations say the same. */
const SAID_BY_VIOLATIONS: ReadonlySet<string> = new Set(["field", "detail", "rule", "summary"]);

/**
 * The refusal as every protocol carries it: its code and message, a `google.rpc.ErrorInfo` with the reason and the
 * metadata, and a `google.rpc.BadRequest` when fields broke rules. The cause stays behind.
 */
export function toConnectError(refusal: Refusal): ConnectError {
  const broken = refusal.violations;
  const metadata: Record<string, string> = {};
  for (const [key, value] of Object.entries(refusal.metadata)) {
    if (value !== "" && (broken.length === 0 || !SAID_BY_VIOLATIONS.has(key))) metadata[key] = value;
  }
  const info = create(ErrorInfoSchema, { reason: refusal.reason, domain: ERROR_DOMAIN, metadata });
  const error = new ConnectError(refusal.message, CODES[refusal.code]);
  error.details.push({ desc: ErrorInfoSchema, value: info });
  if (broken.length > 0) {
    const fieldViolations = broken.map(({ field, description }) => ({ field, description }));
    error.details.push({ desc: BadRequestSchema, value: create(BadRequestSchema, { fieldViolations }) });
  }
  return error;
}
