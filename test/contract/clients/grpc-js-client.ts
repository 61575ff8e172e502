import {
  type ChannelOptions,
  type Client,
  type ClientReadableStream,
  credentials,
  loadPackageDefinition,
  Metadata,
  type ServiceClientConstructor,
  type ServiceError,
  status,
} from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { PROTO_FOLDERS, thirdPartyProtos } from "./protos.ts";
import { CallRefused, type HandedOut, type OpenClient, type SchedulingClient } from "./scheduling-client.ts";

type ServiceName = "CronService" | "QueueService" | "TaskService";

const FILES = [
  "scheduling/v1/cron_service.proto",
  "scheduling/v1/queue_service.proto",
  "scheduling/v1/task_service.proto",
  "google/rpc/error_details.proto",
  "google/rpc/status.proto",
];

/** The contract as proto-loader reads it from our files, without generated code. */
export function loadContract() {
  thirdPartyProtos();
  const definition = loadSync(FILES, { includeDirs: [...PROTO_FOLDERS], keepCase: true, longs: String, enums: String });
  const deserialize = (type: string, bytes: Buffer): Message => {
    const described = definition[type];
    if (described === undefined || !("deserialize" in described)) throw new Error(`there is no message ${type}`);
    return (described.deserialize as (bytes: Buffer) => Message)(bytes);
  };
  const loaded = loadPackageDefinition(definition) as unknown as {
    readonly scheduling: { readonly v1: Readonly<Record<ServiceName, ServiceClientConstructor>> };
  };
  return { services: loaded.scheduling.v1, deserialize };
}

export type Contract = ReturnType<typeof loadContract>;

// biome-ignore lint/suspicious/noExplicitAny: without generated code a message is an object of any shape
type Message = any;

/** One unary call by name, with 20 seconds of time unless another deadline is given. */
export function callUnary(
  client: Client,
  method: string,
  request: object,
  metadata: Metadata,
  deadlineMs = 20_000,
): Promise<Message> {
  const { promise, resolve, reject } = Promise.withResolvers<Message>();
  const call = (client as Message)[method].bind(client);
  const options = { deadline: Date.now() + deadlineMs };
  call(request, metadata, options, (error: ServiceError | null, answer: Message) =>
    error === null ? resolve(answer) : reject(error),
  );
  return promise;
}

/** A stream of the queue service, with 20 seconds of time. */
export function openConsumeStream(queues: Client, request: object, metadata: Metadata): ClientReadableStream<Message> {
  return (queues as Message).ConsumeStream(request, metadata, { deadline: Date.now() + 20_000 });
}

/** The metadata of a call with that key. */
export function metadataFor(key: string | undefined): Metadata {
  const metadata = new Metadata();
  if (key !== undefined) metadata.set("authorization", `Bearer ${key}`);
  return metadata;
}

/** A client with grpc-js; over TLS when `ca`, the certificate to trust, is given. */
export function grpcJs(contract: Contract, options: ChannelOptions = {}, ca?: string): OpenClient {
  return (url, key) => {
    const metadata = metadataFor(key);
    const channel = ca === undefined ? credentials.createInsecure() : credentials.createSsl(Buffer.from(ca));
    const open = (name: ServiceName): Client => new contract.services[name](new URL(url).host, channel, options);
    const [queues, crons, tasks] = [open("QueueService"), open("CronService"), open("TaskService")];
    const refuse = (error: unknown): never => {
      throw refusalOf(contract, error);
    };
    const call = (client: Client, method: string, request: object): Promise<Message> =>
      callUnary(client, method, request, metadata).catch(refuse);
    const post = ({ url, payload, contentType }: Parameters<SchedulingClient["scheduleTask"]>[1]) => ({
      url,
      payload,
      content_type: contentType,
    });
    return {
      publish: async (queue, payload, contentType) =>
        (await call(queues, "Publish", { queue, payload, content_type: contentType })).message_id,
      consume: async (queue) => (await call(queues, "Consume", { queue })).messages.map(handedOut),
      ack: async (queue, { messageId, receipt }) =>
        (await call(queues, "Ack", { queue, message_id: messageId, receipt })).acked,
      async *consumeStream(queue, signal) {
        const stream = openConsumeStream(queues, { queue }, metadata);
        const cancel = () => stream.cancel();
        signal.addEventListener("abort", cancel);
        try {
          for await (const { messages } of stream) yield* (messages ?? []).map(handedOut);
        } catch (error) {
          if ((error as ServiceError).code !== status.CANCELLED || !signal.aborted) refuse(error);
        } finally {
          signal.removeEventListener("abort", cancel);
        }
      },
      async stats(queue) {
        const { stats } = await call(queues, "GetQueueStats", { queue });
        return { available: stats.available ?? 0, inFlight: stats.in_flight ?? 0 };
      },
      createCronJob: async (cronExpr, given) =>
        (await call(crons, "CreateCronJob", { cron_expr: cronExpr, max_runs: 1, ...post(given) })).cron_job.cron_id,
      async scheduleTask(runAt, given) {
        const run_at = { seconds: Math.floor(runAt.getTime() / 1000), nanos: (runAt.getTime() % 1000) * 1_000_000 };
        return (await call(tasks, "ScheduleTask", { run_at, ...post(given) })).task.task_id;
      },
      async [Symbol.asyncDispose]() {
        for (const client of [queues, crons, tasks]) client.close();
      },
    };
  };
}

function handedOut({ message_id: messageId, payload, receipt }: Message): HandedOut {
  return { messageId, payload, receipt };
}

/** Reads the details of an error in the trailers, as the gRPC libraries of other languages do. */
function refusalOf(contract: Contract, thrown: unknown): unknown {
  const { code, details, metadata } = thrown as ServiceError;
  const [bytes] = metadata.get("grpc-status-details-bin");
  if (bytes === undefined) return thrown;
  const sent = contract.deserialize("google.rpc.Status", bytes as Buffer);
  const info = sent.details.find((detail: Message) => detail.type_url.endsWith("/google.rpc.ErrorInfo"));
  const reason = info === undefined ? undefined : contract.deserialize("google.rpc.ErrorInfo", info.value).reason;
  return new CallRefused(status[code] ?? "?", reason, details);
}
