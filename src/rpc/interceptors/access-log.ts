import { Code, ConnectError, createContextKey, type HandlerContext, type Interceptor } from "@connectrpc/connect";
import type { Logger } from "../../log.ts";
import { principalKey } from "../context.ts";

/** The face that a call came in by, where it is not the protocol of the handler: `rest`. */
export const faceKey = createContextKey<string | undefined>(undefined, { description: "face" });

interface CallRecord {
  readonly startedAt: number;
  readonly protocol: string;
  /** Whether the interceptor has taken over, which knows better when a call ends and how. */
  taken: boolean;
}

const recordKey = createContextKey<CallRecord | undefined>(undefined, { description: "call record" });

/**
 * One line for each call: method, protocol, code, milliseconds, request id and project. Payloads and queries are never
 * in it. Calls that end before the interceptors, by the key check or a body that cannot be read, are logged by the gate.
 */
export function accessLog(log: Logger): {
  /** Wraps the request gate, which runs first. */
  readonly gate: (check: (ctx: HandlerContext) => Promise<void>) => (ctx: HandlerContext) => Promise<void>;
  readonly interceptor: Interceptor;
} {
  // None of the fields can hold a secret, and looking for secrets takes ten times as long as the line.
  const calls = log.child({}, { redact: [] });

  function write(record: CallRecord | undefined, call: Logged, error: unknown): void {
    if (!calls.isLevelEnabled("info")) return;
    calls.info(
      {
        method: `${call.service.typeName}/${call.method.name}`,
        protocol: record?.protocol,
        code: codeName(error),
        ms: Math.round((performance.now() - (record?.startedAt ?? performance.now())) * 10) / 10,
        request_id: call.header.get("x-request-id") ?? undefined,
        project_id: call.values.get(principalKey)?.projectId,
      },
      "call",
    );
  }

  return {
    gate: (check) => async (ctx) => {
      const record = {
        startedAt: performance.now(),
        protocol: ctx.values.get(faceKey) ?? ctx.protocolName,
        taken: false,
      };
      ctx.values.set(recordKey, record);
      // The signal of a call is aborted at its end in any case, with the error if there was one.
      const onEnd = () => {
        if (record.taken) return;
        const { service, method, values, requestHeader: header } = ctx;
        write(record, { service, method, values, header }, ctx.signal.reason);
      };
      if (ctx.signal.aborted) onEnd();
      else ctx.signal.addEventListener("abort", onEnd, { once: true });
      await check(ctx);
    },
    interceptor: (next) => async (request) => {
      const { service, method, contextValues: values, header } = request;
      const record = values.get(recordKey);
      if (record !== undefined) record.taken = true;
      let hasEnded = false;
      const end = (error: unknown) => {
        if (!hasEnded) write(record, { service, method, values, header }, error);
        hasEnded = true;
      };
      try {
        const response = await next(request);
        if (!response.stream) {
          end(undefined);
          return response;
        }
        // A generator that waits for its reader is not resumed by a reader that is gone; the signal tells of that.
        request.signal.addEventListener("abort", () => end(request.signal.reason), { once: true });
        return { ...response, message: watched(response.message, end) };
      } catch (error) {
        end(error);
        throw error;
      }
    },
  };
}

interface Logged {
  readonly service: { readonly typeName: string };
  readonly method: { readonly name: string };
  readonly header: Headers;
  readonly values: HandlerContext["values"];
}

/** The same messages; `end` is told how they ended, with `canceled` where the reader left. */
async function* watched<T>(messages: AsyncIterable<T>, end: (error: unknown) => void): AsyncGenerator<T> {
  let outcome: unknown = new ConnectError("the caller left", Code.Canceled);
  try {
    yield* messages;
    outcome = undefined;
  } catch (error) {
    outcome = error;
    throw error;
  } finally {
    end(outcome);
  }
}

/** `ok`, or the name of the error's code in snake_case. */
function codeName(error: unknown): string {
  if (error === undefined) return "ok";
  const code = error instanceof ConnectError ? error.code : Code.Internal;
  if (error instanceof Error && error.name === "AbortError") return "canceled";
  return (Code[code] ?? "Unknown").replace(/(?!^)([A-Z])/g, "_$1").toLowerCase();
}
