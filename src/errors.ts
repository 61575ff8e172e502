/** The status names shared by gRPC and Connect; REST answers show them in upper case. */
export type ErrorCode =
  | "invalid_argument"
  | "not_found"
  | "already_exists"
  | "permission_denied"
  | "resource_exhausted"
  | "failed_precondition"
  | "aborted"
  | "unauthenticated"
  | "unavailable"
  | "unimplemented"
  | "deadline_exceeded";

interface RefusalRow {
  readonly code: ErrorCode;
  /** For people. `{name}` stands for the metadata entry of that name. */
  readonly message: string;
  /** REST only: the status and `error.code` where the mapping from `code` would say too little. */
  readonly rest?: { readonly status: number; readonly code?: string };
}

/**
 * Every refusal a caller can be given, in one table.
 * The reason (the key) is part of the API: clients switch on it. The message is for people and may change.
 */
export const REFUSALS = {
  FIELD_INVALID: { code: "invalid_argument", message: "{summary}" },
  FIELDS_CONFLICT: { code: "invalid_argument", message: "{first} and {second} are two names of one field and differ" },
  BODY_INVALID: { code: "invalid_argument", message: "the request body is not valid JSON: {detail}" },
  MESSAGE_INVALID: { code: "invalid_argument", message: "the request is not a message of this method: {detail}" },
  BODY_TOO_LARGE: {
    code: "resource_exhausted",
    message: "the request is larger than {limit} bytes",
    rest: { status: 413 },
  },
  PAYLOAD_TOO_LARGE: {
    code: "invalid_argument",
    message: "{field} is {size} bytes; the limit is {limit}",
    rest: { status: 413 },
  },
  BODY_TYPE_UNSUPPORTED: {
    code: "invalid_argument",
    message: "send JSON as application/json, not {type}",
    rest: { status: 415 },
  },
  BODY_ENCODING_UNSUPPORTED: {
    code: "invalid_argument",
    message: "send the body plain or with Content-Encoding: gzip, not {encoding}",
    rest: { status: 415 },
  },
  BODY_TIMEOUT: {
    code: "deadline_exceeded",
    message: "the request body did not arrive in time",
    rest: { status: 408 },
  },
  PATH_INVALID: { code: "invalid_argument", message: "the path is not valid: {detail}" },
  PATH_BODY_MISMATCH: {
    code: "invalid_argument",
    message: "{field} differs from the path and the project is strict",
  },
  UNKNOWN_FIELD: { code: "invalid_argument", message: "unknown field {field} and the project is strict" },

  API_KEY_MISSING: { code: "unauthenticated", message: "send the header Authorization: Bearer <api key>" },
  API_KEY_INVALID: { code: "unauthenticated", message: "the API key is not known, or is revoked" },
  AUTHORIZATION_INVALID: {
    code: "unauthenticated",
    message: "the header Authorization cannot be used: {detail}; send Authorization: Bearer <api key>",
  },
  KEY_LOOKUPS_BUSY: { code: "unavailable", message: "too many keys are being looked up; try again" },

  CRON_JOB_NOT_FOUND: { code: "not_found", message: "there is no cron job {cron_id}{hint}" },
  CRON_JOB_IS_MONITOR: {
    code: "failed_precondition",
    message: "cron job {cron_id} is a monitor: its runs are made elsewhere, so it cannot be {asked}",
    rest: { status: 409 },
  },
  CRON_JOB_IS_NO_MONITOR: {
    code: "failed_precondition",
    message: "cron job {cron_id} is no monitor, and is not pinged",
    rest: { status: 409 },
  },
  PING_TOKEN_UNKNOWN: { code: "not_found", message: "nothing is pinged here" },
  TOO_MANY_PINGS: {
    code: "resource_exhausted",
    message: "only {limit} pings a minute are taken here, and this one was not; ping less often",
  },
  RUN_NOT_FOUND: { code: "not_found", message: "there is no run {run_id}" },
  RUN_NOT_RUNNABLE: { code: "failed_precondition", message: "the fire cannot be run afterwards: {why}" },
  TASK_NOT_FOUND: { code: "not_found", message: "there is no task {task_id}" },
  TASK_NOT_SCHEDULED: {
    code: "failed_precondition",
    message: "task {task_id} is {state}; only a scheduled one can be moved",
  },
  TASKS_TOO_MANY: {
    code: "deadline_exceeded",
    message: "there are too many tasks to count in one call; narrow the filter",
  },
  TASK_RUNNING: { code: "failed_precondition", message: "task {task_id} is running" },
  CRON_EXPR_INVALID: { code: "invalid_argument", message: "{field} is not a cron expression: {detail}" },
  TIMEZONE_INVALID: { code: "invalid_argument", message: "{field} is not an IANA time zone" },
  TARGET_REFUSED: { code: "invalid_argument", message: "{field} cannot be a target: {rule}" },

  CLOCK_NOT_VIRTUAL: {
    code: "failed_precondition",
    message: "this server lives in real time; a clock that calls can move is that of carillon dev --virtual-clock",
  },
  CLOCK_MOVING: { code: "aborted", message: "another call is moving the clock; try again when it has answered" },

  ENDPOINT_NOT_FOUND: { code: "not_found", message: "there is no endpoint {endpoint_id}" },

  ROUTE_NOT_FOUND: { code: "not_found", message: "there is nothing at {path}" },
  METHOD_NOT_ALLOWED: {
    code: "unimplemented",
    message: "{method} is not offered here; try {allow}",
    rest: { status: 405, code: "METHOD_NOT_ALLOWED" },
  },

  QUEUE_NOT_FOUND: { code: "not_found", message: "there is no queue {queue}" },
  QUEUE_EXISTS: { code: "already_exists", message: "queue {queue} exists with another {field}" },
  QUEUE_IN_USE: {
    code: "failed_precondition",
    message: "queue {queue} is the dead letter queue of another; set force to delete it all the same",
    rest: { status: 409 },
  },
  DEAD_LETTER_QUEUE_MISSING: {
    code: "failed_precondition",
    message: "there is no queue {dead_letter_queue} to take dead letters; create it first",
  },
  DEAD_LETTER_QUEUE_CYCLE: {
    code: "invalid_argument",
    message: "dead letters of {queue} would come back to it by way of {dead_letter_queue}",
  },
  DEAD_LETTER_NOT_FOUND: { code: "not_found", message: "{message_id} is not a dead letter of queue {queue}" },
  DEAD_LETTERS_TOO_MANY: {
    code: "deadline_exceeded",
    message:
      "there are too many dead letters to go through in one call; nothing was changed; narrow the filter by its times",
  },
  DEAD_LETTER_LEASED: {
    code: "failed_precondition",
    message: "{message_id} is handed out to a consumer of its dead letter queue",
    rest: { status: 409 },
  },
  REDRIVE_NOT_FOUND: { code: "not_found", message: "there is no redrive {redrive_id}" },
  REDRIVE_RUNNING: { code: "already_exists", message: "redrive {redrive_id} of queue {queue} is still running" },
  SUBSCRIPTION_NOT_FOUND: { code: "not_found", message: "there is no push subscription {subscription_id}" },
  GROUP_NOT_WAITING: {
    code: "failed_precondition",
    message: "no message that has failed is at the front of group {group_id} and free",
    rest: { status: 409 },
  },
  TOO_MANY_TESTS: {
    code: "resource_exhausted",
    message: "only {limit} test deliveries a minute; wait a little",
  },
  SUBSCRIPTION_EXISTS: { code: "already_exists", message: "another subscription of the queue has this url" },

  WEBHOOK_NOT_FOUND: { code: "not_found", message: "there is no event webhook {webhook_id}" },
  DELIVERY_NOT_FOUND: { code: "not_found", message: "there is no delivery {delivery_id}" },
  REPLAY_REFUSED: {
    code: "failed_precondition",
    message: "delivery {delivery_id} cannot be replayed: {detail}",
    rest: { status: 409 },
  },
  DELIVERIES_TOO_MANY: {
    code: "deadline_exceeded",
    message: "there are too many deliveries to count in one call; nothing was started; narrow the filter by its times",
  },
  BACKFILL_NOT_FOUND: { code: "not_found", message: "there is no backfill {backfill_id}" },
  BACKFILL_RUNNING: { code: "already_exists", message: "backfill {backfill_id} of this cron job is still running" },
  REPLAY_NOT_FOUND: { code: "not_found", message: "there is no replay {replay_id}" },
  REPLAY_RUNNING: { code: "already_exists", message: "replay {replay_id} is still running" },
  WEBHOOK_LIMIT: { code: "resource_exhausted", message: "a project has at most {limit} event webhooks" },

  SIGNING_KEY_NOT_FOUND: { code: "not_found", message: "there is no signing key {key_id}" },
  SIGNING_SECRET_CURRENT: {
    code: "failed_precondition",
    message: "{key_id} is the current secret, and nothing is sent without one; rotate it with overlap_seconds 0",
    rest: { status: 409 },
  },
  KEY_SET_NOT_FOUND: { code: "not_found", message: "there is no project {project_id}" },

  IDEMPOTENCY_KEY_REUSED: {
    code: "failed_precondition",
    message: "this idempotency key was used for another request",
    rest: { status: 422, code: "IDEMPOTENCY_KEY_REUSED" },
  },
  IDEMPOTENCY_KEY_IN_USE: { code: "aborted", message: "a request with this idempotency key is still running" },

  TOO_BUSY: { code: "unavailable", message: "too much is waiting on this server; nothing was changed; try again" },
  WRITE_CONFLICT: { code: "aborted", message: "another call changed the same rows at the same time; try again" },
  SHUTTING_DOWN: { code: "unavailable", message: "the server is shutting down" },
  DATABASE_UNAVAILABLE: {
    code: "unavailable",
    message: "the database cannot be reached; whether the call took effect is unknown",
  },
  DATABASE_TIMEOUT: { code: "deadline_exceeded", message: "the database took too long; nothing was changed" },
} as const satisfies Record<string, RefusalRow>;

export type Reason = keyof typeof REFUSALS;

/** One broken rule of one field. `field` is the contract's name, dotted and indexed: `messages[3].delay_seconds`. */
export interface FieldViolation {
  readonly field: string;
  readonly description: string;
}

/** A "no" meant for the caller. Whatever else is thrown is our fault and becomes `internal`. */
export class Refusal extends Error {
  override readonly name = "Refusal";
  readonly reason: Reason;
  readonly metadata: Readonly<Record<string, string>>;
  readonly violations: readonly FieldViolation[];

  constructor(
    reason: Reason,
    metadata: Readonly<Record<string, string>> = {},
    options: ErrorOptions & { readonly violations?: readonly FieldViolation[] } = {},
  ) {
    super(
      REFUSALS[reason].message.replace(/\{(\w+)\}/g, (_, key: string) => metadata[key] ?? "?"),
      options,
    );
    this.reason = reason;
    this.metadata = metadata;
    this.violations = options.violations ?? [];
  }

  get code(): ErrorCode {
    return REFUSALS[this.reason].code;
  }

  /** A refusal of one field for the rule that it broke. */
  static field(field: string, description: string, reason: Reason = "FIELD_INVALID"): Refusal {
    return new Refusal(
      reason,
      { field, detail: description, rule: description, summary: `${field}: ${description}` },
      { violations: [{ field, description }] },
    );
  }
}
