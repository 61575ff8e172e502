import { type DestinationStream, destination, type Logger, pino } from "pino";
import pretty from "pino-pretty";

export type { Logger } from "pino";

export interface LogOptions {
  readonly level: "trace" | "debug" | "info" | "warn" | "error" | "fatal" | "silent";
  /** Text for people instead of one JSON object a line. */
  readonly pretty: boolean;
  /** Standard output (the default) or standard error, where a command's own output must stay clean. */
  readonly to?: "stdout" | "stderr";
  /** Takes the lines instead, for tests. */
  readonly stream?: DestinationStream;
}

/** Names under which a secret could reach a log line, at the top and one level down. */
const SECRET_NAMES = [
  "authorization",
  "cookie",
  "set-cookie",
  "password",
  "secret",
  "signers",
  "sealed",
  "api_key",
  "apiKey",
  "database_url",
  "databaseUrl",
  "webhook-signature",
  "payload",
  "body",
];

/**
 * The only maker of loggers. Secrets and payloads under their usual names print as `***`; errors lose what is not their
 * type, code, message, stack and cause; URLs in messages lose credentials and query. Lines are written before the call
 * returns, so none is lost when the process ends.
 */
export function createLogger(options: LogOptions): Logger {
  const fd = options.to === "stderr" ? 2 : 1;
  const stream =
    options.stream ??
    (options.pretty
      ? pretty({
          destination: fd,
          sync: true,
          colorize: process.stdout.isTTY,
          ignore: "pid,hostname",
          singleLine: true,
        })
      : destination({ dest: fd, sync: true }));
  return pino(
    {
      level: options.level,
      base: null,
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
      redact: {
        paths: SECRET_NAMES.flatMap((name) => [`["${name}"]`, `*["${name}"]`, `*.headers["${name}"]`]),
        censor: "***",
      },
      hooks: {
        logMethod(args, method) {
          const [about, message] = args as unknown[];
          // Without a message pino takes that of the error, as it is.
          const error = message === undefined && about instanceof Object && "err" in about ? about.err : undefined;
          const text = message ?? (error instanceof Error ? error.message : undefined);
          const rest = text === undefined ? [] : [scrubUrls(text)];
          method.apply(this, (typeof about === "string" ? [scrubUrls(about)] : [about, ...rest]) as typeof args);
        },
      },
      serializers: { err: describeError, error: describeError, url: scrubUrls },
    },
    stream,
  );
}

/** What of an error may be logged. pg's errors carry `detail`, which quotes values of rows, so fields are named here. */
function describeError(error: unknown, depth = 0): unknown {
  if (!(error instanceof Error)) return typeof error === "string" ? scrubUrls(error) : "(not an Error)";
  return {
    type: error.name,
    ...("code" in error && { code: error.code }),
    message: scrubUrls(error.message),
    stack: scrubUrls(error.stack ?? ""),
    ...(error.cause !== undefined && depth < 4 && { cause: describeError(error.cause, depth + 1) }),
  };
}

/** The text with the credentials and the query of every URL in it hidden. */
export function scrubUrls(value: unknown): string {
  return String(value)
    .replace(/([a-z][a-z0-9+.-]{0,30}:\/\/)[^\s/@?#]{1,512}@/gi, "$1***@")
    .replace(/([a-z][a-z0-9+.-]{0,30}:\/\/[^\s?#"']{1,2048})\?[^\s"']+/gi, "$1?***");
}
