import { globSync } from "node:fs";
import { join } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import { ErrorInfoSchema } from "../../../gen/google/rpc/error_details_pb.js";
import { type Child, linesOf, type Outcome, runChild, startChild } from "./child.ts";
import { CallRefused, codeName, type HandedOut, type OpenClient, type SchedulingClient } from "./scheduling-client.ts";

const packages = join(import.meta.dirname, "../../../node_modules/@bufbuild");
/** The program itself: the script in `.bin` starts it as a child that no signal reaches. */
const BUF = globSync(join(packages, "buf-*/bin/buf"))[0] ?? "buf";

/** The JSON form of protobuf, as far as the flows read it. */
interface JsonMessage {
  readonly messageId: string;
  readonly payload: string;
  readonly receipt: string;
}

/** The protocols that `buf curl` speaks. */
export type BufProtocol = "connect" | "grpc" | "grpcweb";

/** Runs `buf curl` over HTTP/2. It knows the contract by reflection only: it is given no schema. */
export function bufCurl(args: readonly string[]): Promise<Outcome> {
  return runChild(BUF, ["curl", "--http2-prior-knowledge", ...args]);
}

/** A client that starts `buf curl` for each call. */
export function bufCurlClient(protocol: BufProtocol): OpenClient {
  return (url, key) => {
    const argsFor = (method: string, request: object): string[] => [
      ...(key === undefined ? [] : ["--header", `Authorization: Bearer ${key}`]),
      ...["--protocol", protocol, "--data", JSON.stringify(request), `${url}/scheduling.v1.${method}`],
    ];
    // biome-ignore lint/suspicious/noExplicitAny: an answer is JSON of any shape
    async function call(method: string, request: object): Promise<any> {
      const outcome = await bufCurl(argsFor(method, request));
      if (outcome.code !== 0) refuse(outcome.stderr);
      return JSON.parse(outcome.stdout);
    }
    const post = ({ url: target, payload, contentType }: Parameters<SchedulingClient["scheduleTask"]>[1]) => ({
      url: target,
      payload: payload.toString("base64"),
      contentType,
    });
    return {
      publish: async (queue, payload, contentType) =>
        (await call("QueueService/Publish", { queue, payload: payload.toString("base64"), contentType })).messageId,
      consume: async (queue) => (await call("QueueService/Consume", { queue })).messages.map(handedOut),
      ack: async (queue, { messageId, receipt }) =>
        (await call("QueueService/Ack", { queue, messageId, receipt })).acked,
      async *consumeStream(queue, signal) {
        const args = argsFor("QueueService/ConsumeStream", { queue });
        await using child = startChild(BUF, ["curl", "--http2-prior-knowledge", ...args]);
        const interrupt = () => child.process.kill("SIGINT");
        signal.addEventListener("abort", interrupt);
        for await (const { messages = [] } of jsonOf(child)) yield* messages.map(handedOut);
        signal.removeEventListener("abort", interrupt);
        await child.ended;
        if (!signal.aborted) refuse(child.stderr());
      },
      async stats(queue) {
        const { stats } = await call("QueueService/GetQueueStats", { queue });
        return { available: stats.available ?? 0, inFlight: stats.inFlight ?? 0 };
      },
      createCronJob: async (cronExpr, given) =>
        (await call("CronService/CreateCronJob", { cronExpr, maxRuns: 1, ...post(given) })).cronJob.cronId,
      scheduleTask: async (runAt, given) =>
        (await call("TaskService/ScheduleTask", { runAt: runAt.toISOString(), ...post(given) })).task.taskId,
      async [Symbol.asyncDispose]() {},
    };
  };
}

function handedOut({ messageId, payload, receipt }: JsonMessage): HandedOut {
  return { messageId, payload: Buffer.from(payload, "base64"), receipt };
}

/** `buf` writes each message of a stream over several lines, the last of which is a brace in the first column. */
async function* jsonOf(child: Child): AsyncGenerator<{ readonly messages?: JsonMessage[] }> {
  const lines = linesOf(child);
  let text = "";
  for (let line = await lines.next(); !line.done; line = await lines.next()) {
    text += line.value;
    if (line.value !== "}" && line.value !== "{}") continue;
    yield JSON.parse(text);
    text = "";
  }
}

/** It writes an error as Connect does: in JSON, with the details in base64. */
function refuse(stderr: string): never {
  let error: { code: string; message: string; details?: { type: string; value: string }[] };
  try {
    error = JSON.parse(stderr);
  } catch {
    throw new Error(`buf curl failed: ${stderr}`);
  }
  const info = error.details?.find(({ type }) => type === "google.rpc.ErrorInfo");
  const reason = info && fromBinary(ErrorInfoSchema, Buffer.from(info.value, "base64")).reason;
  throw new CallRefused(codeName(error.code), reason, error.message);
}
