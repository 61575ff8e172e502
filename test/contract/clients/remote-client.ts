import { CallRefused, type HandedOut, type SchedulingClient } from "./scheduling-client.ts";

/** What a client that lives elsewhere answers to one command. */
export interface RemoteAnswer {
  readonly result?: unknown;
  readonly refused?: { readonly code: string; readonly reason?: string; readonly message: string };
  /** What went wrong otherwise. */
  readonly failed?: string;
}

/** A command for a client that lives elsewhere. Bytes are in base64. */
export type RemoteCommand =
  | { readonly name: "publish"; readonly queue: string; readonly payload: string; readonly contentType: string }
  | { readonly name: "consume"; readonly queue: string }
  | { readonly name: "ack"; readonly queue: string; readonly messageId: string; readonly receipt: string }
  | { readonly name: "streamOpen"; readonly queue: string }
  /** Answers a list of messages, or null at the end. */
  | { readonly name: "streamNext" }
  | { readonly name: "streamCancel" }
  | { readonly name: "stats"; readonly queue: string }
  | { readonly name: "createCronJob"; readonly cronExpr: string; readonly post: RemotePost }
  | { readonly name: "scheduleTask"; readonly runAtMs: number; readonly post: RemotePost };

interface RemotePost {
  readonly url: string;
  readonly payload: string;
  readonly contentType: string;
}

/** A message as a remote client answers it. */
export interface RemoteMessage {
  readonly messageId: string;
  readonly payload: string;
  readonly receipt: string;
}

/** A client in another process, which carries out one command after the other. It has one stream at most. */
export function remoteClient(
  send: (command: RemoteCommand) => Promise<RemoteAnswer>,
  close: () => PromiseLike<void>,
): SchedulingClient {
  async function call<T>(command: RemoteCommand): Promise<T> {
    const { result, refused, failed } = await send(command);
    if (failed !== undefined) throw new Error(`${command.name}: ${failed}`);
    if (refused !== undefined) throw new CallRefused(refused.code, refused.reason, refused.message);
    return result as T;
  }
  const post = ({ url, payload, contentType }: { url: string; payload: Buffer; contentType: string }): RemotePost => ({
    url,
    payload: payload.toString("base64"),
    contentType,
  });
  return {
    publish: (queue, payload, contentType) =>
      call({ name: "publish", queue, payload: payload.toString("base64"), contentType }),
    consume: async (queue) => (await call<RemoteMessage[]>({ name: "consume", queue })).map(handedOut),
    ack: (queue, { messageId, receipt }) => call({ name: "ack", queue, messageId, receipt }),
    async *consumeStream(queue, signal) {
      await call({ name: "streamOpen", queue });
      let canceled: Promise<unknown> | undefined;
      signal.addEventListener("abort", () => {
        canceled = call({ name: "streamCancel" });
      });
      for (;;) {
        await canceled;
        const messages = await call<RemoteMessage[] | null>({ name: "streamNext" });
        if (messages === null) return;
        yield* messages.map(handedOut);
      }
    },
    stats: (queue) => call({ name: "stats", queue }),
    createCronJob: (cronExpr, given) => call({ name: "createCronJob", cronExpr, post: post(given) }),
    scheduleTask: (runAt, given) => call({ name: "scheduleTask", runAtMs: runAt.getTime(), post: post(given) }),
    [Symbol.asyncDispose]: close,
  };
}

function handedOut({ messageId, payload, receipt }: RemoteMessage): HandedOut {
  return { messageId, payload: Buffer.from(payload, "base64"), receipt };
}
