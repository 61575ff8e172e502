import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";

/**
 * Answers `deadline_exceeded` when a unary call is not done in time: at the deadline that the caller set, or after
 * `defaultMs` where it set none. The handler's signal is aborted then; what it did so far may or may not take effect.
 * Streams end when their callers wish.
 */
export function deadline(defaultMs = 30_000): Interceptor {
  return (next) => (request) => {
    if (request.stream) return next(request);
    const hasOne = request.header.has("connect-timeout-ms") || request.header.has("grpc-timeout");
    const own = new AbortController();
    return new Promise((resolve, reject) => {
      const expire = (reason: ConnectError) => {
        own.abort(reason);
        reject(reason);
      };
      const timer = hasOne
        ? undefined
        : setTimeout(
            () => expire(new ConnectError(`the call took longer than ${defaultMs} ms`, Code.DeadlineExceeded)),
            defaultMs,
          );
      // The signal of every call is aborted at its end, and this one with it.
      const follow = () => {
        const { reason } = request.signal;
        if (reason instanceof ConnectError && reason.code === Code.DeadlineExceeded) expire(reason);
        else own.abort(reason);
      };
      if (request.signal.aborted) follow();
      else request.signal.addEventListener("abort", follow, { once: true });
      // What is next may throw before it gives a promise.
      const run = async () => next({ ...request, signal: own.signal });
      run()
        .then(resolve, reject)
        .finally(() => clearTimeout(timer));
    });
  };
}
