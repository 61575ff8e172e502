import type { IncomingHttpHeaders } from "node:http";
import { type Client, type Dispatcher, errors } from "undici";
import type { Deadline } from "./deadline.ts";
import { AttemptFailure } from "./failure.ts";
import { msSince, type Timings } from "./timings.ts";

/** How much of a response body is read before the connection is dropped. */
const MAX_BODY_READ = 65_536;
/** How much of it is kept; the longest that an attempt's record stores. */
const MAX_BODY_KEPT = 16_384;
/** How many interim (1xx) responses may come before the answer. */
const MAX_INTERIM = 8;

/** What a receiver answered. */
export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  /** The first 16 KiB of the body, as sent: nothing is decompressed. */
  readonly body: Uint8Array;
  /** Whether `body` is the whole body; false when it was longer, or broke off, or the deadline cut it. */
  readonly bodyComplete: boolean;
}

/** The connection ended before the first byte of an answer: whether the receiver has seen the request, nobody knows. */
export class Unanswered extends AttemptFailure {
  constructor(cause: unknown) {
    super("reset", "the connection was closed before an answer", { cause });
  }
}

/**
 * Sends one POST on a connection and reads the answer.
 * Once the status line and headers are in, the answer is an answer, whatever becomes of the body: the receiver has
 * decided, and to send again because the rest was slow would deliver twice.
 * Throws AttemptFailure. When the attempt is given up before the headers are in, throws the reason; nothing is written
 * afterwards. Notes in `timings` how long the answer took.
 */
export function exchange(
  client: Client,
  request: { readonly path: string; readonly headers: Record<string, string>; readonly body: Uint8Array },
  deadline: Deadline,
  timings: Timings,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    let controller: Dispatcher.DispatchController | undefined;
    let head: { readonly status: number; readonly headers: IncomingHttpHeaders } | undefined;
    const chunks: Buffer[] = [];
    let answering = false;
    let bytesRead = 0;
    let interim = 0;
    let startedMs = 0;

    const stop = (error: unknown): void => {
      deadline.listen(undefined);
      if (head === undefined) {
        reject(error instanceof AttemptFailure || deadline.isOver ? error : asFailure(error, answering));
      } else {
        finish(false);
      }
    };
    const finish = (complete: boolean): void => {
      deadline.listen(undefined);
      if (head === undefined) return;
      const body = new Uint8Array(Buffer.concat(chunks).subarray(0, MAX_BODY_KEPT));
      resolve({ ...head, body, bodyComplete: complete && bytesRead <= MAX_BODY_KEPT });
    };
    deadline.throwIfOver();
    deadline.listen((reason) => {
      stop(reason);
      controller?.abort(new Error("given up"));
    });

    const handler: Dispatcher.DispatchHandler = {
      onRequestStart(started) {
        controller = started;
        startedMs = performance.now();
        // The connection took longer than the caller waits: not one byte goes out.
        if (deadline.isOver) started.abort(new Error("given up"));
      },
      onResponseStarted() {
        answering = true;
      },
      onResponseStart(_, status, headers) {
        if (status >= 200) {
          head = { status, headers };
          timings.firstByteMs = msSince(startedMs);
        } else if (++interim > MAX_INTERIM) {
          throw new AttemptFailure("response_invalid", "too many interim responses");
        }
      },
      onResponseData(reading, chunk) {
        if (bytesRead < MAX_BODY_KEPT) chunks.push(Buffer.from(chunk));
        bytesRead += chunk.length;
        if (bytesRead <= MAX_BODY_READ) return;
        finish(false);
        reading.abort(new Error("enough read"));
      },
      onResponseEnd: () => finish(true),
      onResponseError: (_, error) => stop(error),
    };
    client.dispatch({ ...request, method: "POST" }, handler);
  });
}

function asFailure(cause: unknown, answering: boolean): AttemptFailure {
  if (cause instanceof errors.HeadersOverflowError) {
    return new AttemptFailure("response_invalid", "the response headers are longer than 16 KiB", { cause });
  }
  const refused = cause instanceof errors.SocketError && /^bad (response|upgrade)$/.test(cause.message);
  if (
    refused ||
    cause instanceof errors.HTTPParserError ||
    cause instanceof errors.ResponseContentLengthMismatchError
  ) {
    return new AttemptFailure("response_invalid", "the response is not valid HTTP/1.1", { cause });
  }
  if (!answering) return new Unanswered(cause);
  return new AttemptFailure("reset", "the connection was closed before the answer's headers had ended", { cause });
}
