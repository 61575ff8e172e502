import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import type {
  ConsumeSessionRequestSchema,
  ConsumeSessionResponse,
  QueueMessage,
  QueueService,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import {
  type Answer,
  CALL_MS,
  type Delivery,
  type Face,
  isUnknown,
  numberOf,
  payloadOf,
  type Session,
  type StreamOptions,
  type Verdict,
  verdictOf,
} from "./faces.ts";
import { type Protocol, queueClient } from "./streams.ts";

/** gRPC, gRPC-Web or Connect, by the generated client. */
export function connectFace(protocol: Protocol): Face {
  const clients = new Map<string, Client<typeof QueueService>>();
  const clientOf = (url: string): Client<typeof QueueService> => {
    const client = clients.get(url) ?? queueClient(url, protocol);
    clients.set(url, client);
    return client;
  };
  const timeoutMs = CALL_MS;
  return {
    name: protocol,

    async publish(url, queue, drafts, idempotencyKey) {
      const messages = drafts.map(({ n, group, delayMs }) => ({
        payload: Buffer.from(JSON.stringify(payloadOf(n))),
        groupId: group,
        delaySeconds: delayMs / 1_000,
      }));
      const client = clientOf(url);
      if (messages.length > 1) {
        const answer = client.publishBatch({ queue, messages, idempotencyKey }, { timeoutMs });
        return answered(answer, ({ messageIds }) => messageIds);
      }
      const answer = client.publish({ queue, ...messages[0], idempotencyKey }, { timeoutMs });
      return answered(answer, ({ messageId }) => [messageId]);
    },

    async pull(url, queue, { maxMessages, waitSeconds, leaseSeconds, requestId }) {
      const answer = clientOf(url).consume(
        { queue, maxMessages, waitSeconds, visibilityTimeout: leaseSeconds, requestId },
        { timeoutMs: CALL_MS + waitSeconds * 1_000 },
      );
      return answered(answer, ({ messages }) => messages.map(fromProto));
    },

    async settle(url, queue, verb, { messageId, receipt }, seconds) {
      const client = clientOf(url);
      const named = { queue, messageId, receipt };
      switch (verb) {
        case "ack":
          return answered(client.ack(named, { timeoutMs }), verdictOf);
        case "nack":
          return answered(client.nack({ ...named, delaySeconds: seconds }, { timeoutMs }), verdictOf);
        case "extend":
          return answered(client.extendLease({ ...named, visibilityTimeout: seconds }, { timeoutMs }), verdictOf);
      }
    },

    async ackAll(url, queue, items) {
      const answer = clientOf(url).ackBatch({ queue, items: [...items] }, { timeoutMs });
      return answered(answer, ({ results }) => results.map(verdictOf));
    },

    async *stream(url, queue, { maxUnacked, leaseSeconds }, signal) {
      const request = { queue, maxUnacked, visibilityTimeout: leaseSeconds, heartbeatSeconds: 1 };
      for await (const { messages } of clientOf(url).consumeStream(request, { signal })) yield messages.map(fromProto);
    },
  };
}

/** Opens a session over gRPC. */
export function openSession(
  url: string,
  queue: string,
  { maxUnacked, leaseSeconds }: StreamOptions,
  signal: AbortSignal,
): Session {
  type Request = MessageInitShape<typeof ConsumeSessionRequestSchema>;
  const requests: Request[] = [];
  /** Who waits for an answer, in the order of their requests. */
  const waiting: ((answer: Answer<Verdict>) => void)[] = [];
  let isOver = false;
  let wake = (): void => {};
  const send = (request: Request["request"]): void => {
    requests.push({ request } as Request);
    wake();
  };
  async function* outgoing(): AsyncGenerator<Request> {
    while (!isOver) {
      const next = requests.shift();
      if (next !== undefined) yield next;
      else await new Promise<void>((resolve) => (wake = resolve));
    }
  }
  async function* incoming(): AsyncGenerator<readonly Delivery[]> {
    try {
      for await (const response of queueClient(url, "grpc").consumeSession(outgoing(), { signal })) {
        const verdict = firstResult(response);
        if (verdict !== undefined) waiting.shift()?.({ kind: "ok", value: verdict });
        yield response.messages.map(fromProto);
      }
    } finally {
      isOver = true;
      wake();
      for (const tell of waiting.splice(0)) tell({ kind: "unknown", why: "the session ended" });
    }
  }

  send({ case: "open", value: { queue, maxUnacked, visibilityTimeout: leaseSeconds, heartbeatSeconds: 1 } });
  return {
    deliveries: incoming(),
    settle(_url, _queue, verb, held, seconds) {
      if (isOver) return undefined;
      const answer = new Promise<Answer<Verdict>>((resolve) => waiting.push(resolve));
      switch (verb) {
        case "ack":
          send({ case: "ack", value: { items: [held] } });
          break;
        case "nack":
          send({ case: "nack", value: { items: [{ ...held, delaySeconds: seconds }] } });
          break;
        case "extend":
          send({ case: "extend", value: { items: [{ ...held, visibilityTimeout: seconds }] } });
          break;
      }
      return answer;
    },
  };
}

function firstResult({ acked, nacked, extended }: ConsumeSessionResponse): Verdict | undefined {
  const result = acked?.results[0] ?? nacked?.results[0] ?? extended?.results[0];
  return result === undefined ? undefined : verdictOf(result);
}

async function answered<M, T>(answer: Promise<M>, value: (message: M) => T): Promise<Answer<T>> {
  try {
    return { kind: "ok", value: value(await answer) };
  } catch (thrown) {
    const error = ConnectError.from(thrown);
    const why = `${Code[error.code]} ${error.findDetails(ErrorInfoSchema)[0]?.reason ?? error.rawMessage}`;
    return { kind: isUnknown(error) ? "unknown" : "refused", why };
  }
}

function fromProto({ messageId, receipt = "", attempts, leaseExpiresAt, payload }: QueueMessage): Delivery {
  return {
    messageId,
    receipt,
    attempts,
    leaseExpiresAt: leaseExpiresAt === undefined ? Number.NaN : timestampMs(leaseExpiresAt),
    n: numberOf(JSON.parse(Buffer.from(payload).toString())),
  };
}
