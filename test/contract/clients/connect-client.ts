import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { ErrorInfoSchema } from "../../../gen/google/rpc/error_details_pb.js";
import { CronService } from "../../../gen/scheduling/v1/cron_service_pb.js";
import { type QueueMessage, QueueService } from "../../../gen/scheduling/v1/queue_service_pb.js";
import { TaskService } from "../../../gen/scheduling/v1/task_service_pb.js";
import { CallRefused, codeName, type HandedOut, type SchedulingClient } from "./scheduling-client.ts";

/** A client over any transport of Connect-ES. `close` ends the transport's connections. */
export function connectClient(transport: Transport, key: string | undefined, close = () => {}): SchedulingClient {
  const queues = createClient(QueueService, transport);
  const crons = createClient(CronService, transport);
  const tasks = createClient(TaskService, transport);
  const headers = key === undefined ? undefined : { authorization: `Bearer ${key}` };
  const options = headers === undefined ? {} : { headers };
  return {
    async publish(queue, payload, contentType) {
      const call = queues.publish({ queue, payload, contentType }, options);
      return (await call.catch(refuse)).messageId;
    },
    async consume(queue) {
      const call = queues.consume({ queue }, options);
      return (await call.catch(refuse)).messages.map(handedOut);
    },
    async ack(queue, { messageId, receipt }) {
      return (await queues.ack({ queue, messageId, receipt }, options).catch(refuse)).acked;
    },
    async *consumeStream(queue, signal) {
      try {
        for await (const { messages } of queues.consumeStream({ queue }, { ...options, signal })) {
          yield* messages.map(handedOut);
        }
      } catch (error) {
        if (!signal.aborted) refuse(error);
      }
    },
    async stats(queue) {
      const { stats } = await queues.getQueueStats({ queue }, options).catch(refuse);
      return { available: stats?.available ?? -1, inFlight: stats?.inFlight ?? -1 };
    },
    async createCronJob(cronExpr, post) {
      const call = crons.createCronJob({ cronExpr, ...post, maxRuns: 1 }, options);
      return (await call.catch(refuse)).cronJob?.cronId ?? "";
    },
    async scheduleTask(runAt, post) {
      const call = tasks.scheduleTask({ runAt: timestampFromDate(runAt), ...post }, options);
      return (await call.catch(refuse)).task?.taskId ?? "";
    },
    async [Symbol.asyncDispose]() {
      close();
    },
  };
}

function handedOut({ messageId, payload, receipt }: QueueMessage): HandedOut {
  return { messageId, payload: Buffer.from(payload), receipt: receipt ?? "" };
}

function refuse(error: unknown): never {
  if (!(error instanceof ConnectError)) throw error;
  const reason = error.findDetails(ErrorInfoSchema)[0]?.reason;
  throw new CallRefused(codeName(Code[error.code]), reason, error.rawMessage);
}
