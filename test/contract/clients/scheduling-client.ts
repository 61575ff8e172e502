/** A message as a consumer was handed it. */
export interface HandedOut {
  readonly messageId: string;
  readonly payload: Buffer;
  readonly receipt: string;
}

/** What Carillon is asked to POST. */
export interface Post {
  readonly url: string;
  readonly payload: Buffer;
  readonly contentType: string;
}

/** The few calls that the flows make, whatever client and protocol carry them. A refused call throws CallRefused. */
export interface SchedulingClient extends AsyncDisposable {
  /** Answers the message's id. */
  publish(queue: string, payload: Buffer, contentType: string): Promise<string>;
  consume(queue: string): Promise<HandedOut[]>;
  /** Answers whether the message is removed. */
  ack(queue: string, message: Pick<HandedOut, "messageId" | "receipt">): Promise<boolean>;
  /** Messages as they come. Ends when `signal` aborts, which cancels the call. */
  consumeStream(queue: string, signal: AbortSignal): AsyncIterable<HandedOut>;
  stats(queue: string): Promise<{ readonly available: number; readonly inFlight: number }>;
  /** A cron job that fires once. Answers its id. */
  createCronJob(cronExpr: string, post: Post): Promise<string>;
  /** Answers the task's id. */
  scheduleTask(runAt: Date, post: Post): Promise<string>;
}

/** Connects a client to the server at `url`, with a key or without one. */
export type OpenClient = (url: string, key: string | undefined) => SchedulingClient | Promise<SchedulingClient>;

/** A refusal as the client saw it. */
export class CallRefused extends Error {
  override readonly name = "CallRefused";
  /** The status name of gRPC, such as NOT_FOUND. */
  readonly code: string;
  /** `google.rpc.ErrorInfo.reason`, or its counterpart in REST. */
  readonly reason: string | undefined;

  constructor(code: string, reason: string | undefined, message: string) {
    super(`${code} / ${reason}: ${message}`);
    this.code = code;
    this.reason = reason;
  }
}

/** NOT_FOUND for NotFound and for not_found: the names of the codes differ in spelling only. */
export function codeName(name: string): string {
  return name.replace(/([a-z])([A-Z])/g, "$1_$2").toUpperCase();
}
