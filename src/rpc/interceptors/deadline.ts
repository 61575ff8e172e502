import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";

/**
 * Answers `deadline_exceeded` when a unary call is not done in time: at the deadline that the caller set, or after
 * `defaultMs` where it set none. The handler's signal is aborted then; what it did so far may or may not take effect.
 * Streams end when their callers wish.
 */
export function deadline(defaultMs = 30_000): Interceptor {
  return (next) => async (request) => {
    if (request.stream) return next(request);
    const own = new AbortController();
    const { promise: late, reject } = Promise.withResolvers<never>();
    const expire = () => {
      const reason = request.signal.reason;
      if (reason instanceof ConnectError && reason.code === Code.DeadlineExceeded) reject(reason);
    };
    const hasOne = request.header.has("connect-timeout-ms") || request.header.has("grpc-timeout");
    const timer = hasOne
      ? undefined
      : setTimeout(() => {
          const error = new ConnectError(`the call took longer than ${defaultMs} ms`, Code.DeadlineExceeded);
          own.abort(error);
          reject(error);
        }, defaultMs);
    if (request.signal.aborted) expire();
    else request.signal.addEventListener("abort", expire, { once: true });
    try {
      const signal = AbortSignal.any([request.signal, own.signal]);
      return await Promise.race([next({ ...request, signal }), late]);
    } finally {
      clearTimeout(timer);
      request.signal.removeEventListener("abort", expire);
    }
  };
}
