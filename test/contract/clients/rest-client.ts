import { CallRefused, type HandedOut, type SchedulingClient } from "./scheduling-client.ts";

/** One request of the REST face. */
export interface RestCall {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | undefined;
  /** Calls the request off. */
  readonly signal: AbortSignal | undefined;
}

/** An answer whose body is still coming. */
export interface RestReply {
  readonly status: number;
  readonly contentType: string;
  readonly body: AsyncIterable<Uint8Array>;
}

/** What carries requests to a server. */
export interface RestTransport extends AsyncDisposable {
  send(call: RestCall): Promise<RestReply>;
}

/** How a stream is asked for: newline-delimited JSON, which is the default, or server-sent events. */
export type StreamKind = "ndjson" | "sse";

/** A client of the REST face that writes and reads JSON as text, so that every byte of a payload is seen. */
export function restClient(
  transport: RestTransport,
  key: string | undefined,
  streamKind: StreamKind = "ndjson",
): SchedulingClient {
  const authorization = key === undefined ? {} : { authorization: `Bearer ${key}` };

  async function open(method: "GET" | "POST", path: string, body?: string, more: object = {}, signal?: AbortSignal) {
    const headers = { ...authorization, ...(body !== undefined && { "content-type": "application/json" }), ...more };
    const reply = await transport.send({ method, path: `/v1/scheduling${path}`, headers, body, signal });
    if (reply.status === 200) return reply;
    const { error } = JSON.parse(await textOf(reply));
    throw new CallRefused(error.code, error.reason, error.message);
  }

  async function call(method: "GET" | "POST", path: string, body?: string): Promise<string> {
    return textOf(await open(method, path, body));
  }

  return {
    async publish(queue, payload, contentType) {
      const answer = await call("POST", "/queue/publish", bodyOf({ queue, content_type: contentType }, payload));
      return JSON.parse(answer).message_id;
    },
    async consume(queue) {
      return handedOut(await call("POST", "/queue/consume", JSON.stringify({ queue })));
    },
    async ack(queue, { messageId, receipt }) {
      const body = JSON.stringify({ queue, message_id: messageId, receipt });
      return JSON.parse(await call("POST", "/queue/ack", body)).acked;
    },
    async *consumeStream(queue, signal) {
      const accept = streamKind === "sse" ? "text/event-stream" : "*/*";
      const path = `/queue/consume_stream/${queue}`;
      const reply = await open("GET", path, undefined, { accept }, signal);
      const expected = streamKind === "sse" ? "text/event-stream" : "application/x-ndjson";
      if (!reply.contentType.startsWith(expected)) throw new Error(`the stream came as ${reply.contentType}`);
      try {
        for await (const line of linesOf(reply.body)) {
          // Server-sent events have empty lines between them, and comments as signs of life.
          if (streamKind === "ndjson" || line.startsWith("data: ")) yield* handedOut(line);
        }
      } catch (error) {
        if (!signal.aborted) throw error;
      }
    },
    async stats(queue) {
      const stats = JSON.parse(await call("GET", `/queue/stats/${queue}`));
      return { available: stats.available, inFlight: stats.in_flight };
    },
    async createCronJob(cronExpr, { url, payload, contentType }) {
      const job = { cron_expr: cronExpr, url, max_runs: 1, content_type: contentType };
      return JSON.parse(await call("POST", "/cron/create", bodyOf(job, payload))).cron_id;
    },
    async scheduleTask(runAt, { url, payload, contentType }) {
      const task = { run_at: runAt.toISOString(), url, content_type: contentType };
      return JSON.parse(await call("POST", "/task/schedule", bodyOf(task, payload))).task_id;
    },
    [Symbol.asyncDispose]: () => transport[Symbol.asyncDispose](),
  };
}

/** The fields as JSON, with the payload as it stands where it is JSON, else in base64. */
function bodyOf(fields: Readonly<Record<string, unknown>>, payload: Buffer): string {
  const value = isJson(fields["content_type"]) ? payload.toString() : JSON.stringify(payload.toString("base64"));
  return `${JSON.stringify(fields).slice(0, -1)},"payload":${value}}`;
}

/** The messages in an answer, their payloads cut out of its text: parsing it would lose what the flows look for. */
function handedOut(answer: string): HandedOut[] {
  const message = /"message_id":"(\w+)".*?"payload":(.*?),"content_type":"(.*?)".*?"receipt":"(.*?)"/g;
  return [...answer.matchAll(message)].map(([, messageId = "", value = "", contentType = "", receipt = ""]) => ({
    messageId,
    payload: isJson(contentType) ? Buffer.from(value) : Buffer.from(JSON.parse(value), "base64"),
    receipt,
  }));
}

function isJson(contentType: unknown): boolean {
  return contentType === "" || contentType === "application/json";
}

async function textOf({ body }: RestReply): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

async function* linesOf(body: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of body) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
}
