import { CommandError, EXIT } from "../failure.ts";
import type { Call } from "./contract.ts";

/** Where a server is, and how to speak to it. */
export interface Connection {
  /** Without a slash at its end. */
  readonly url: string;
  readonly key: string;
  /** How long an answer may take, in milliseconds; of a stream, until it opens. 0 is no limit. */
  readonly timeoutMs: number;
}

/** What a call is made with. */
export interface Arguments {
  /** Values for the fields in the path, in its order. */
  readonly inPath: readonly string[];
  /** The other fields, each as JSON text: what is in a payload is sent as it is. */
  readonly fields: readonly (readonly [name: string, json: string])[];
}

/** An answer of REST that is an error. */
interface ErrorBody {
  readonly code: string;
  readonly message: string;
  readonly reason?: string;
  readonly details: readonly Readonly<Record<string, string>>[];
  readonly request_id: string;
}

/** What a server that cannot serve now answers with: the call may be tried again. */
const CANNOT_NOW: ReadonlySet<string> = new Set(["UNAVAILABLE", "DEADLINE_EXCEEDED"]);

/**
 * Makes a call and gives its answer as the JSON text that came. Warnings of the server go to standard error.
 *
 * @throws CommandError when it is refused (exit code 1), or there is no answer or the server cannot serve now (3).
 */
export async function callUnary(connection: Connection, call: Call, args: Arguments): Promise<string> {
  return answered(connection, [], async (signal) => (await open(connection, call, args, signal)).text());
}

/**
 * Makes a call that streams, and gives each answer as a line of JSON until the stream ends or `signal` is aborted.
 *
 * @throws CommandError as `callUnary`, and when the stream ends with an error or is cut.
 */
export async function* callStream(
  connection: Connection,
  call: Call,
  args: Arguments,
  signal: AbortSignal,
): AsyncGenerator<string> {
  try {
    const response = await answered(connection, [signal], (either) => open(connection, call, args, either));
    for await (const line of linesOf(response)) {
      const error = errorOf(line);
      if (error !== undefined) throw refusalOf(error);
      yield line;
    }
  } catch (error) {
    if (signal.aborted) return;
    if (error instanceof CommandError) throw error;
    const told = `the stream from ${connection.url} was cut: ${reasonOf(error)}`;
    throw new CommandError(told, { cause: error, exitCode: EXIT.unreachable });
  }
}

async function* linesOf(response: Response): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of response.body ?? []) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
}

async function open(connection: Connection, call: Call, args: Arguments, signal: AbortSignal): Promise<Response> {
  const response = await fetch(connection.url + target(call, args), {
    method: call.httpMethod,
    headers: {
      authorization: `Bearer ${connection.key}`,
      "content-type": "application/json",
      ...(connection.timeoutMs > 0 && !call.isStream && { "connect-timeout-ms": `${connection.timeoutMs}` }),
    },
    ...(call.hasBody && {
      body: `{${args.fields.map(([name, json]) => `${JSON.stringify(name)}:${json}`).join(",")}}`,
    }),
    // The key is for the server that was named.
    redirect: "error",
    signal,
  });
  const warning = response.headers.get("x-scheduling-warning");
  if (warning !== null) console.error(`carillon: warning: ${warning}`);
  if (!response.ok) throw refused(connection, response.status, await response.text());
  return response;
}

/** The path and the query. */
function target({ path, hasBody }: Call, { inPath, fields }: Arguments): string {
  const values = inPath.values();
  const filled = path.replaceAll(/\{\w+\}/g, () => encodeURIComponent(values.next().value ?? ""));
  if (hasBody || fields.length === 0) return filled;
  const query = new URLSearchParams(fields.flatMap(([name, json]) => parameters(name, JSON.parse(json))));
  return `${filled}?${query}`;
}

/** A value as parameters of a query: those of a message have dots, those of a list repeat. */
function parameters(name: string, value: unknown): [string, string][] {
  if (value === null) return [];
  if (Array.isArray(value)) return value.flatMap((item) => parameters(name, item));
  if (typeof value !== "object") return [[name, String(value)]];
  return Object.entries(value).flatMap(([key, inner]) => parameters(`${name}.${key}`, inner));
}

/** Runs a call under the connection's time limit, and says in words why there is no answer. */
async function answered<T>(
  { url, timeoutMs }: Connection,
  signals: readonly AbortSignal[],
  call: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const late = new AbortController();
  const timer = timeoutMs === 0 ? undefined : setTimeout(() => late.abort(), timeoutMs);
  try {
    return await call(AbortSignal.any([late.signal, ...signals]));
  } catch (error) {
    if (error instanceof CommandError) throw error;
    const told = late.signal.aborted
      ? `no answer from ${url} within ${timeoutMs / 1_000} s; whether the call took effect is unknown`
      : `${url} cannot be reached: ${reasonOf(error)}`;
    throw new CommandError(told, { cause: error, exitCode: EXIT.unreachable });
  } finally {
    clearTimeout(timer);
  }
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error instanceof AggregateError && error.errors.length > 0) return reasonOf(error.errors[0]);
  // fetch says "fetch failed" and keeps what happened to itself.
  return error.cause === undefined ? error.message : reasonOf(error.cause);
}

/** The refusal in words: the message, its code and reason, each broken field on a line, and the request's id. */
function refused(connection: Connection, status: number, body: string): CommandError {
  const error = errorOf(body);
  if (error === undefined) {
    const told = `${connection.url} answered ${status} with something that is not Carillon's`;
    return new CommandError(told, { exitCode: EXIT.unreachable });
  }
  return refusalOf(error);
}

function refusalOf({ code, message, reason, details, request_id }: ErrorBody): CommandError {
  const lines = details.flatMap((detail) => {
    if (detail["field"] !== undefined && detail["message"] !== undefined)
      return [`${detail["field"]}: ${detail["message"]}`];
    return Object.entries(detail).map(([key, value]) => `${key}: ${value}`);
  });
  const head = `${reason === undefined ? code : `${code} / ${reason}`}: ${message}`;
  const text = [head, ...lines.map((line) => `  ${line}`), `  request ${request_id}`].join("\n");
  return new CommandError(text, { exitCode: CANNOT_NOW.has(code) ? EXIT.unreachable : EXIT.refused });
}

/** The error of an answer, or of a line of a stream; undefined when the text is something else. */
function errorOf(text: string): ErrorBody | undefined {
  try {
    const { error } = JSON.parse(text);
    return typeof error?.code === "string" ? error : undefined;
  } catch {
    return undefined;
  }
}
