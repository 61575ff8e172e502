import type { DescMethodUnary, MessageInitShape } from "@bufbuild/protobuf";
import { fromBinary } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { expect } from "vitest";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import { type RestAnswer, TEST_KEY, type TestCarillon } from "../support/carillon.ts";

/** How a call ended, whatever the protocol: `ok`, or the status name in lower case and the stable reason. */
export interface Outcome {
  readonly code: string;
  readonly reason: string | undefined;
  /** For the message of a failed test. */
  readonly text: string;
}

/** Longest wait of a client for an answer: whatever comes in, the server is never silent. */
const DEADLINE_MS = 20_000;

/** The outcome of a REST answer. */
export function restOutcome({ status, body, text }: Pick<RestAnswer, "status" | "body" | "text">): Outcome {
  if (status === 200) return { code: "ok", reason: undefined, text };
  return { code: body?.error?.code?.toLowerCase() ?? `http ${status}`, reason: body?.error?.reason, text };
}

/** A unary call over Connect with a body of JSON text, such as `scheduling.v1.QueueService/Publish`. */
export async function connectJson(
  carillon: TestCarillon,
  procedure: string,
  json: string | Uint8Array<ArrayBuffer>,
  headers: Readonly<Record<string, string>> = {},
): Promise<Outcome> {
  const response = await fetch(`${carillon.url}/${procedure}`, {
    method: "POST",
    headers: { authorization: `Bearer ${TEST_KEY}`, "content-type": "application/json", ...headers },
    body: json,
    signal: AbortSignal.timeout(DEADLINE_MS),
  });
  const text = await response.text();
  if (response.status === 200) return { code: "ok", reason: undefined, text };
  const error = JSON.parse(text);
  const info = error.details?.find(({ type }: { type: string }) => type === ErrorInfoSchema.typeName);
  const reason = info && fromBinary(ErrorInfoSchema, Buffer.from(info.value, "base64")).reason;
  return { code: error.code, reason, text };
}

/** Clients of all three services over gRPC. */
export function grpcClients(carillon: TestCarillon, authorization = `Bearer ${TEST_KEY}`) {
  const transport = createGrpcTransport({
    baseUrl: carillon.url,
    defaultTimeoutMs: DEADLINE_MS,
    interceptors: [
      (next) => (request) => {
        request.header.set("authorization", authorization);
        return next(request);
      },
    ],
  });
  return {
    cron: createClient(CronService, transport),
    queue: createClient(QueueService, transport),
    task: createClient(TaskService, transport),
    /** Any unary method. */
    async call<M extends DescMethodUnary>(method: M, request: MessageInitShape<M["input"]>): Promise<Outcome> {
      const ending = transport.unary(method, undefined, undefined, undefined, request, undefined);
      return outcomeOf(ending);
    },
  };
}

/** The outcome of a call of a Connect client. */
export async function outcomeOf(call: Promise<unknown>): Promise<Outcome> {
  try {
    await call;
    return { code: "ok", reason: undefined, text: "" };
  } catch (error) {
    const refusal = ConnectError.from(error);
    const [info] = refusal.findDetails(ErrorInfoSchema);
    const code = Code[refusal.code].replaceAll(/(?<=[a-z])(?=[A-Z])/g, "_").toLowerCase();
    return { code, reason: info?.reason, text: refusal.message };
  }
}

/** Checks that a call was refused with this code and reason. */
export function expectRefusal(outcome: Outcome, code: string, reason: string | undefined): void {
  expect({ code: outcome.code, reason: outcome.reason }, outcome.text.slice(0, 500)).toEqual({ code, reason });
}
