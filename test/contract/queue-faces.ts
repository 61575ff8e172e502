import { type DescMethodUnary, fromJson, type JsonObject, toJson } from "@bufbuild/protobuf";
import { Code, ConnectError, type Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { TEST_KEY, type TestCarillon } from "../support/carillon.ts";

// biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
type Json = any;

/** Where each call is over REST. The braces are filled in from the request. */
const PATHS = {
  createQueue: ["POST", "/queue/create"],
  getQueue: ["GET", "/queue/get/{queue}"],
  updateQueue: ["PATCH", "/queue/update/{queue}"],
  purgeQueue: ["POST", "/queue/purge/{queue}"],
  publish: ["POST", "/queue/publish"],
  publishBatch: ["POST", "/queue/publish_batch"],
  consume: ["POST", "/queue/consume"],
  ack: ["POST", "/queue/ack"],
  nack: ["POST", "/queue/nack"],
  extendLease: ["POST", "/queue/extend"],
  ackBatch: ["POST", "/queue/ack_batch"],
  nackBatch: ["POST", "/queue/nack_batch"],
  extendLeaseBatch: ["POST", "/queue/extend_batch"],
  listDeadLetters: ["GET", "/queue/dlq/list/{queue}"],
  getDeadLetter: ["GET", "/queue/dlq/get/{queue}/{message_id}"],
  updateDeadLetter: ["PATCH", "/queue/dlq/update/{queue}/{message_id}"],
  purgeDeadLetters: ["POST", "/queue/dlq/purge/{queue}"],
  redriveDeadLetters: ["POST", "/queue/dlq/redrive/{queue}"],
  startRedrive: ["POST", "/queue/dlq/redrive_job/start/{queue}"],
  getRedrive: ["GET", "/queue/dlq/redrive_job/get/{redrive_id}"],
  listRedrives: ["GET", "/queue/dlq/redrive_job/list/{queue}"],
  cancelRedrive: ["POST", "/queue/dlq/redrive_job/cancel/{redrive_id}"],
  getQueueStats: ["GET", "/queue/stats/{queue}"],
  getQueueHistory: ["GET", "/queue/history/{queue}"],
  pauseQueue: ["POST", "/queue/pause/{queue}"],
  resumeQueue: ["POST", "/queue/resume/{queue}"],
  listBlockedGroups: ["GET", "/queue/groups/blocked/{queue}"],
  resumeGroup: ["POST", "/queue/groups/resume/{queue}"],
  pushSubscribe: ["POST", "/queue/push_subscribe/{queue}"],
  getPushSubscription: ["GET", "/queue/push_subscription/get/{subscription_id}"],
  listPushSubscriptions: ["GET", "/queue/push_subscription/list/{queue}"],
  updatePushSubscription: ["PATCH", "/queue/push_subscription/update/{subscription_id}"],
  pausePushSubscription: ["POST", "/queue/push_subscription/pause/{subscription_id}"],
  resumePushSubscription: ["POST", "/queue/push_subscription/resume/{subscription_id}"],
  testPushSubscription: ["POST", "/queue/push_subscription/test/{subscription_id}"],
} as const;

/** The queue's calls in one protocol, with requests and answers as REST shows them. */
export interface QueueFace {
  readonly name: string;
  /** Fails with a QueueRefusal when the call is refused. */
  call(method: keyof typeof PATHS, request: JsonObject, headers?: Readonly<Record<string, string>>): Promise<Json>;
}

class QueueRefusal extends Error {
  readonly reason: string;
  readonly fields: readonly string[];

  constructor(reason: string, message: string, fields: readonly string[]) {
    super(message);
    this.reason = reason;
    this.fields = fields;
  }
}

/** REST, and gRPC. */
export function queueFaces(carillon: () => TestCarillon): readonly QueueFace[] {
  return [restFace(carillon), grpcFace(carillon)];
}

function restFace(carillon: () => TestCarillon): QueueFace {
  return {
    name: "REST",
    async call(method, request, headers) {
      const [verb, path] = PATHS[method];
      const rest = { ...request };
      const filled = path.replace(/\{(\w+)\}/g, (_, name: string) => {
        const value = rest[name];
        delete rest[name];
        return String(value);
      });
      const query = Object.entries(rest).flatMap(([name, value]) =>
        [value].flat().map((one): [string, string] => [name, String(one)]),
      );
      const answer = await carillon().rest(
        verb,
        verb === "GET" ? `${filled}?${new URLSearchParams(query)}` : filled,
        verb === "GET" ? undefined : rest,
        headers,
      );
      if (answer.status === 200) return answer.body;
      const { reason, message, details } = answer.body.error;
      throw new QueueRefusal(
        reason,
        message,
        details.map((detail: { field: string }) => detail.field),
      );
    },
  };
}

function grpcFace(carillon: () => TestCarillon): QueueFace {
  let transport: Transport | undefined;
  return {
    name: "gRPC",
    async call(name, request, headers) {
      transport ??= createGrpcTransport({ baseUrl: carillon().url });
      const method: DescMethodUnary = QueueService.method[name];
      const input = fromJson(method.input, withBase64(request), { ignoreUnknownFields: false });
      const sent = { authorization: `Bearer ${TEST_KEY}`, ...headers };
      try {
        const { message } = await transport.unary(method, undefined, 20_000, sent, input);
        const answer: Json = toJson(method.output, message, { useProtoFieldName: true, alwaysEmitImplicit: true });
        const messages = [answer.dead_letter?.message, ...(answer.messages ?? []), ...(answer.items ?? [])];
        for (const message of messages) {
          if (typeof message?.payload !== "string") continue;
          message.payload = JSON.parse(Buffer.from(message.payload, "base64").toString());
        }
        for (const redrive of [answer.redrive, ...(answer.items ?? [])]) {
          if (redrive?.state) redrive.state = redrive.state.replace("REDRIVE_STATE_", "").toLowerCase();
        }
        // What REST answers with, where it answers with one field.
        const one = answer.stats ?? answer.dead_letter ?? answer.redrive ?? answer.subscription;
        return one ?? (typeof answer.queue === "object" ? answer.queue : answer);
      } catch (error) {
        if (!(error instanceof ConnectError) || error.code === Code.Internal) throw error;
        throw new QueueRefusal(error.findDetails(ErrorInfoSchema)[0]?.reason ?? "", error.message, []);
      }
    },
  };
}

/** JSON of protobuf writes bytes as base64, where REST has plain JSON. */
function withBase64(request: JsonObject): JsonObject {
  const base64 = (message: JsonObject) =>
    message["payload"] === undefined
      ? message
      : { ...message, payload: Buffer.from(JSON.stringify(message["payload"])).toString("base64") };
  const { messages } = request;
  return base64(
    Array.isArray(messages) ? { ...request, messages: messages.map((m) => base64(m as JsonObject)) } : request,
  );
}
