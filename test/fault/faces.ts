import { timestampMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import type { QueueMessage, QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { TEST_KEY } from "../support/carillon.ts";
import { call, type Outcome } from "./calls.ts";
import { type Protocol, queueClient } from "./streams.ts";

/** What a caller knows. `unknown` is neither a yes nor a no: the call may have taken effect. */
export type Answer<T> =
  | { readonly kind: "ok"; readonly value: T }
  | { readonly kind: "unknown"; readonly why: string }
  | { readonly kind: "refused"; readonly why: string };

/** A message to publish. */
export interface Draft {
  readonly n: number;
  readonly group: string;
  readonly delayMs: number;
}

/** A message as a consumer is given it. */
export interface Delivery {
  readonly messageId: string;
  readonly receipt: string;
  readonly attempts: number;
  /** Milliseconds on the server's clock. */
  readonly leaseExpiresAt: number;
  /** Undefined: its payload is none of ours. */
  readonly n: number | undefined;
}

export interface Pull {
  readonly maxMessages: number;
  readonly waitSeconds: number;
  readonly leaseSeconds: number;
  readonly requestId: string;
}

/** What the answer to an ack, nack or extend said. */
export interface Verdict {
  readonly done: boolean;
  readonly already: boolean;
  readonly reason: string;
}

/** The calls of a queue's clients over one protocol. None rejects but `stream`, when the stream ends. */
export interface Face {
  readonly name: string;
  /** Publishes one message, or several in a batch. The key is left out where it is empty. */
  publish(url: string, queue: string, drafts: readonly Draft[], key: string): Promise<Answer<readonly string[]>>;
  pull(url: string, queue: string, pull: Pull): Promise<Answer<readonly Delivery[]>>;
  settle(
    url: string,
    queue: string,
    verb: "ack" | "nack" | "extend",
    delivery: Pick<Delivery, "messageId" | "receipt">,
    seconds: number,
  ): Promise<Answer<Verdict>>;
  stream(
    url: string,
    queue: string,
    options: { readonly maxUnacked: number; readonly leaseSeconds: number },
    signal: AbortSignal,
  ): AsyncGenerator<readonly Delivery[]>;
}

/** Most time for a call beyond what it may wait, in milliseconds. */
const CALL_MS = 10_000;
/** What REST answers where the same call may succeed at once, or in a while, though it may also have had its effect. */
const UNSETTLED = new Set(["WRITE_CONFLICT", "IDEMPOTENCY_KEY_IN_USE", "DATABASE_TIMEOUT", "KEY_LOOKUPS_BUSY"]);

/** About 200 bytes that follow from a number, so that a payload which was changed on its way shows. */
function payloadOf(n: number): { readonly n: number; readonly filler: string } {
  return { n, filler: `${(n * 2_654_435_761) % 2 ** 32}`.padStart(180, ".") };
}

function numberOf(payload: unknown): number | undefined {
  const { n, filler } = Object(payload) as Partial<ReturnType<typeof payloadOf>>;
  return typeof n === "number" && filler === payloadOf(n).filler ? n : undefined;
}

/** Plain REST. */
export const rest: Face = {
  name: "REST",

  async publish(url, queue, drafts, key) {
    const bodies = drafts.map(({ n, group, delayMs }) => ({
      payload: payloadOf(n),
      ...(group !== "" && { group_id: group }),
      ...(delayMs > 0 && { delay_seconds: delayMs / 1_000 }),
    }));
    const options = { timeoutMs: CALL_MS, ...(key !== "" && { key }) };
    if (bodies.length === 1) {
      const outcome = await call(url, "POST", "/queue/publish", { queue, ...bodies[0] }, options);
      return answerOf(outcome, ({ message_id }) => [message_id]);
    }
    const outcome = await call(url, "POST", "/queue/publish_batch", { queue, messages: bodies }, options);
    return answerOf(outcome, ({ message_ids }) => message_ids);
  },

  async pull(url, queue, pull) {
    const body = {
      queue,
      max_messages: pull.maxMessages,
      wait_seconds: pull.waitSeconds,
      visibility_timeout: pull.leaseSeconds,
      ...(pull.requestId !== "" && { request_id: pull.requestId }),
    };
    const outcome = await call(url, "POST", "/queue/consume", body, { timeoutMs: CALL_MS + pull.waitSeconds * 1_000 });
    return answerOf(outcome, ({ messages }) => messages.map(fromRest));
  },

  async settle(url, queue, verb, { messageId, receipt }, seconds) {
    const body = {
      queue,
      message_id: messageId,
      receipt,
      ...(verb === "nack" && { delay_seconds: seconds }),
      ...(verb === "extend" && { visibility_timeout: seconds }),
    };
    const outcome = await call(url, "POST", `/queue/${verb}`, body, { timeoutMs: CALL_MS });
    return answerOf(outcome, ({ acked, nacked, extended, already, reason }) => ({
      done: (acked ?? nacked ?? extended) === true,
      already: already === true,
      reason: reason ?? "",
    }));
  },

  async *stream(url, queue, { maxUnacked, leaseSeconds }, signal) {
    const query = `max_unacked=${maxUnacked}&visibility_timeout=${leaseSeconds}&heartbeat_seconds=1`;
    const response = await fetch(`${url}/v1/scheduling/queue/consume_stream/${queue}?${query}`, {
      headers: { authorization: `Bearer ${TEST_KEY}` },
      signal,
    });
    let text = "";
    for await (const chunk of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
      const lines = `${text}${chunk}`.split("\n");
      text = lines.pop() ?? "";
      for (const line of lines) {
        const { messages, error } = JSON.parse(line);
        if (error !== undefined) throw new Error(error.reason ?? error.code);
        yield (messages ?? []).map(fromRest);
      }
    }
  },
};

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
          return answered(client.ack(named, { timeoutMs }), ({ acked, already, reason = "" }) => ({
            done: acked,
            already,
            reason,
          }));
        case "nack":
          return answered(
            client.nack({ ...named, delaySeconds: seconds }, { timeoutMs }),
            ({ nacked, reason = "" }) => ({ done: nacked, already: false, reason }),
          );
        case "extend":
          return answered(
            client.extendLease({ ...named, visibilityTimeout: seconds }, { timeoutMs }),
            ({ extended, reason = "" }) => ({ done: extended, already: false, reason }),
          );
      }
    },

    async *stream(url, queue, { maxUnacked, leaseSeconds }, signal) {
      const request = { queue, maxUnacked, visibilityTimeout: leaseSeconds, heartbeatSeconds: 1 };
      for await (const { messages } of clientOf(url).consumeStream(request, { signal })) yield messages.map(fromProto);
    },
  };
}

function answerOf<T>(outcome: Outcome, value: (body: Extract<Outcome, { kind: "ok" }>["body"]) => T): Answer<T> {
  switch (outcome.kind) {
    case "ok":
      return { kind: "ok", value: value(outcome.body) };
    case "unknown":
      return outcome;
    case "refused": {
      const isUnsettled = UNSETTLED.has(outcome.reason) || outcome.status === 504;
      return { kind: isUnsettled ? "unknown" : "refused", why: `${outcome.status} ${outcome.reason}` };
    }
  }
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

/** Whether the error leaves open what the call did: it came from a broken connection, or says so itself. */
function isUnknown(error: ConnectError): boolean {
  const reason = error.findDetails(ErrorInfoSchema)[0]?.reason;
  if (reason !== undefined) return UNSETTLED.has(reason) || error.code === Code.Unavailable;
  const isServersFault = error.code === Code.Internal && error.rawMessage === "internal error";
  return !isServersFault && error.code !== Code.Unknown && error.code !== Code.Unimplemented;
}

// biome-ignore lint/suspicious/noExplicitAny: a message as JSON
function fromRest(message: any): Delivery {
  const { message_id, receipt, attempts, lease_expires_at, payload } = message;
  return {
    messageId: message_id,
    receipt,
    attempts,
    leaseExpiresAt: Date.parse(lease_expires_at),
    n: numberOf(payload),
  };
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
