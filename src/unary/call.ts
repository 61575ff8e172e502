import type { DescMethodUnary, DescService, Message } from "@bufbuild/protobuf";
import {
  Code,
  ConnectError,
  type ContextValues,
  createContextValues,
  type HandlerContext,
  type UnaryRequest,
  type UnaryResponse,
} from "@connectrpc/connect";
import { getAbortSignalReason } from "@connectrpc/connect/protocol";
import type { UnaryMethod } from "./registry.ts";

/** What a protocol knows of a call when it begins. */
export interface CallStart {
  /** `connect` or `grpc`. */
  readonly protocolName: string;
  readonly url: string;
  readonly requestHeader: Headers;
  readonly responseHeader: Headers;
  readonly responseTrailer: Headers;
  /** The deadline that the caller set, in milliseconds from now. */
  readonly timeoutMs?: number | undefined;
  readonly contextValues?: ContextValues | undefined;
}

type UnaryFn = (request: UnaryRequest) => Promise<UnaryResponse>;

/** Why the signal of a call that simply ends is aborted. It is one for all calls, as each would take a stack trace. */
const ENDED = new DOMException("This operation was aborted", "AbortError");

const NO_TIMEOUT = (): undefined => undefined;

/**
 * One unary call: the context that gate, interceptors and implementation see, with the same properties as Connect's own.
 * They are plain ones, so that a copy made by spreading has them all.
 */
export class Call implements HandlerContext {
  readonly service: DescService;
  readonly method: DescMethodUnary;
  readonly requestMethod = "POST";
  readonly protocolName: string;
  readonly url: string;
  readonly requestHeader: Headers;
  readonly responseHeader: Headers;
  readonly responseTrailer: Headers;
  readonly values: ContextValues;
  readonly signal: AbortSignal;
  readonly timeoutMs: () => number | undefined;
  readonly #controller = new AbortController();
  readonly #target: UnaryMethod;
  #timer: NodeJS.Timeout | undefined;

  constructor(target: UnaryMethod, start: CallStart) {
    this.#target = target;
    this.service = target.method.parent;
    this.method = target.method;
    this.protocolName = start.protocolName;
    this.url = start.url;
    this.requestHeader = start.requestHeader;
    this.responseHeader = start.responseHeader;
    this.responseTrailer = start.responseTrailer;
    this.values = start.contextValues ?? createContextValues();
    this.signal = this.#controller.signal;
    this.timeoutMs = NO_TIMEOUT;
    if (start.timeoutMs !== undefined) {
      const endsAt = Date.now() + start.timeoutMs;
      this.timeoutMs = () => endsAt - Date.now();
      this.#expireAfter(start.timeoutMs);
    }
    const { shutdownSignal } = target.options;
    if (shutdownSignal?.aborted) this.abort(getAbortSignalReason(shutdownSignal));
    target.live.add(this);
  }

  #expireAfter(timeoutMs: number): void {
    const expire = () => this.abort(new ConnectError("the operation timed out", Code.DeadlineExceeded));
    if (timeoutMs <= 0) expire();
    else this.#timer = setTimeout(expire, timeoutMs);
  }

  /** Aborts the signal of the call, for the first time only. Without a reason the call has simply ended. */
  abort(reason: unknown = ENDED): void {
    if (!this.signal.aborted) this.#controller.abort(reason);
  }

  /**
   * Runs the call: the request gate, then `read`, which refuses or reads the message, then interceptors and
   * implementation, then `write`. The signal is aborted when it ends, with the error if there was one.
   *
   * @throws what the call failed with.
   */
  async run<T>(read: () => Promise<Message>, write: (answer: Message) => T): Promise<Awaited<T>> {
    try {
      const gated = this.#target.options.requestGate?.(this);
      if (gated !== undefined) await gated;
      return await write(await this.#invoke(await read()));
    } catch (error) {
      this.abort(error);
      throw error;
    } finally {
      clearTimeout(this.#timer);
      this.#target.live.delete(this);
      this.abort();
    }
  }

  async #invoke(message: Message): Promise<Message> {
    const { method, implementation, options } = this.#target;
    const { service, responseHeader: header, responseTrailer: trailer } = this;
    let next: UnaryFn = async (request) => {
      const context = {
        ...this,
        service: request.service,
        requestHeader: request.header,
        signal: request.signal,
        values: request.contextValues,
      };
      const answer = await implementation(request.message, context);
      return { stream: false, service, method, header, trailer, message: this.#target.complete(answer) };
    };
    // As Connect does it, interceptors are applied to each call: they may keep the state of a call in their closure.
    for (let i = options.interceptors.length - 1; i >= 0; i--) {
      next = (options.interceptors[i] as (next: UnaryFn) => UnaryFn)(next);
    }
    const answer = await next({
      stream: false,
      service,
      method,
      requestMethod: this.requestMethod,
      url: this.url,
      signal: this.signal,
      header: this.requestHeader,
      contextValues: this.values,
      message,
    });
    copyHeaders(answer.header, header);
    copyHeaders(answer.trailer, trailer);
    return answer.message;
  }
}

/** An interceptor may answer with headers of its own. */
function copyHeaders(from: Headers, to: Headers): void {
  if (from === to) return;
  for (const name of [...to.keys()]) to.delete(name);
  for (const [name, value] of from) to.set(name, value);
}
