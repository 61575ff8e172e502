/**
 * A web page's client, bundled by the test and served from an origin of its own. It carries out the commands that the
 * test evaluates in the page.
 */
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { ErrorInfoSchema } from "../../../gen/google/rpc/error_details_pb.js";
import { CronService } from "../../../gen/scheduling/v1/cron_service_pb.js";
import { type QueueMessage, QueueService } from "../../../gen/scheduling/v1/queue_service_pb.js";
import { TaskService } from "../../../gen/scheduling/v1/task_service_pb.js";
import type { RemoteAnswer, RemoteCommand, RemoteMessage } from "./remote-client.ts";

/** What the test calls in the page. */
export interface PageApi {
  open(protocol: "connect" | "grpc-web", baseUrl: string, key: string | undefined): void;
  carryOut(command: RemoteCommand): Promise<RemoteAnswer>;
}

let run: (command: RemoteCommand) => Promise<unknown> = () => Promise.reject(new Error("not open"));

function open(protocol: "connect" | "grpc-web", baseUrl: string, key: string | undefined): void {
  const createTransport = protocol === "connect" ? createConnectTransport : createGrpcWebTransport;
  const transport = createTransport({ baseUrl });
  const queues = createClient(QueueService, transport);
  const crons = createClient(CronService, transport);
  const tasks = createClient(TaskService, transport);
  const options = key === undefined ? {} : { headers: { authorization: `Bearer ${key}` } };
  let stop = new AbortController();
  let stream: AsyncIterator<{ messages: QueueMessage[] }> | undefined;

  run = async (command) => {
    switch (command.name) {
      case "publish": {
        const { queue, contentType } = command;
        const payload = toBytes(command.payload);
        return (await queues.publish({ queue, payload, contentType }, options)).messageId;
      }
      case "consume":
        return (await queues.consume({ queue: command.queue }, options)).messages.map(toRemote);
      case "ack": {
        const { queue, messageId, receipt } = command;
        return (await queues.ack({ queue, messageId, receipt }, options)).acked;
      }
      case "streamOpen": {
        stop = new AbortController();
        const call = queues.consumeStream({ queue: command.queue }, { ...options, signal: stop.signal });
        stream = call[Symbol.asyncIterator]();
        return null;
      }
      case "streamNext": {
        try {
          for (;;) {
            const next = await stream?.next();
            if (next === undefined || next.done) return null;
            // An empty answer only says that the stream is alive.
            if (next.value.messages.length > 0) return next.value.messages.map(toRemote);
          }
        } catch (error) {
          if (ConnectError.from(error).code === Code.Canceled) return null;
          throw error;
        }
      }
      case "streamCancel":
        stop.abort();
        return null;
      case "stats": {
        const { stats } = await queues.getQueueStats({ queue: command.queue }, options);
        return { available: stats?.available, inFlight: stats?.inFlight };
      }
      case "createCronJob": {
        const post = { ...command.post, payload: toBytes(command.post.payload) };
        const { cronJob } = await crons.createCronJob({ cronExpr: command.cronExpr, maxRuns: 1, ...post }, options);
        return cronJob?.cronId;
      }
      case "scheduleTask": {
        const post = { ...command.post, payload: toBytes(command.post.payload) };
        const { task } = await tasks.scheduleTask({ runAt: timestampFromMs(command.runAtMs), ...post }, options);
        return task?.taskId;
      }
    }
  };
}

async function carryOut(command: RemoteCommand): Promise<RemoteAnswer> {
  try {
    return { result: await run(command) };
  } catch (error) {
    if (!(error instanceof ConnectError)) return { failed: String(error) };
    const info = error.findDetails(ErrorInfoSchema)[0];
    const code = Code[error.code] ?? "?";
    return { refused: { code, ...(info && { reason: info.reason }), message: error.rawMessage } };
  }
}

function toRemote({ messageId, payload, receipt }: QueueMessage): RemoteMessage {
  return { messageId, payload: btoa(String.fromCharCode(...payload)), receipt: receipt ?? "" };
}

function toBytes(base64: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

const api: PageApi = { open, carryOut };
Object.assign(globalThis, { carillonPage: api });
