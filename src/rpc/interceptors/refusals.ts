import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { isConnectionFault, sqlState } from "../../db/connect.ts";
import { Refusal } from "../../errors.ts";
import { toConnectError } from "../refusal.ts";

/** What is known of the call in which a fault came up. */
export interface FaultyCall {
  readonly method: string;
  readonly requestId: string | undefined;
}

/** SQLSTATEs of conflicts that go away in time: serialization_failure, deadlock_detected and lock_not_available. */
const CONFLICTS: ReadonlySet<string | undefined> = new Set(["40001", "40P01", "55P03"]);
/** During an outage of the database every call fails in the same way; one in so many milliseconds is told. */
const OUTAGE_QUIET_MS = 5_000;
/** SQLSTATE query_canceled, by statement_timeout. */
const QUERY_CANCELED = "57014";

/**
 * The outermost interceptor but for the log: whatever is thrown, before or while a stream runs, becomes an error that a
 * caller may see. What is our fault becomes `internal` with no detail. `onFault` is told of that, and
 * from time to time of a database that is away or slow.
 */
export function refusals(onFault: (fault: unknown, call: FaultyCall) => void): Interceptor {
  let toldAt = Number.NEGATIVE_INFINITY;
  const isFirstInAWhile = (): boolean => {
    if (performance.now() - toldAt < OUTAGE_QUIET_MS) return false;
    toldAt = performance.now();
    return true;
  };
  return (next) => async (request) => {
    const toCallers = (thrown: unknown): ConnectError => {
      const known = knownError(thrown, request.signal);
      const isDatabase = isConnectionFault(thrown) || sqlState(thrown) === QUERY_CANCELED;
      if (known === undefined || (isDatabase && isFirstInAWhile())) {
        onFault(thrown, {
          method: `${request.service.typeName}/${request.method.name}`,
          requestId: request.header.get("x-request-id") ?? undefined,
        });
      }
      return known ?? new ConnectError("internal error", Code.Internal);
    };
    try {
      const response = await next(request);
      return response.stream ? { ...response, message: converted(response.message, toCallers) } : response;
    } catch (thrown) {
      throw toCallers(thrown);
    }
  };
}

async function* converted<T>(messages: AsyncIterable<T>, toCallers: (thrown: unknown) => Error): AsyncGenerator<T> {
  let isReaders = false;
  try {
    for await (const message of messages) {
      // What is thrown while a message is out comes from its reader, who could not write it to a caller that is gone.
      isReaders = true;
      yield message;
      isReaders = false;
    }
  } catch (thrown) {
    if (isReaders) throw new ConnectError("the caller left", Code.Canceled, undefined, undefined, thrown);
    throw toCallers(thrown);
  }
}

/** The error for the caller, or undefined when `thrown` is our fault. */
function knownError(thrown: unknown, signal: AbortSignal): ConnectError | undefined {
  if (thrown instanceof ConnectError) return thrown;
  if (thrown instanceof Refusal) return toConnectError(thrown);
  // A handler that gives up because the call ended throws what its signal says, in one form or another.
  if (signal.aborted && (thrown === signal.reason || (thrown instanceof Error && thrown.name === "AbortError"))) {
    return signal.reason instanceof ConnectError ? signal.reason : new ConnectError("the call ended", Code.Canceled);
  }
  if (isConnectionFault(thrown)) return toConnectError(new Refusal("DATABASE_UNAVAILABLE"));
  const state = sqlState(thrown);
  if (state === QUERY_CANCELED) return toConnectError(new Refusal("DATABASE_TIMEOUT"));
  if (CONFLICTS.has(state)) return toConnectError(new Refusal("WRITE_CONFLICT"));
  return undefined;
}
