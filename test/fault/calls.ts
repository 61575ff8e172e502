import { TEST_KEY } from "../support/carillon.ts";

/**
 * What a caller knows after a REST call. `unknown` is neither success nor failure: the call may have taken effect.
 * `body` is whatever JSON came.
 */
export type Outcome =
  // biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
  | { readonly kind: "ok"; readonly body: any; readonly headers: Headers; readonly ms: number }
  | { readonly kind: "refused"; readonly status: number; readonly reason: string; readonly ms: number }
  | { readonly kind: "unknown"; readonly why: string; readonly ms: number };

/** Most time for a call, in milliseconds. What takes longer is unknown. */
const CALL_MS = 15_000;

/**
 * One REST call below /v1/scheduling on the node at `url`. Never rejects: a connection that broke, a time-out and an
 * answer that says so itself (503) are `unknown`; every other answer that is not 2xx is `refused`, `INTERNAL` included.
 */
export async function call(
  url: string,
  method: string,
  path: string,
  body?: object,
  options: { readonly key?: string; readonly timeoutMs?: number } = {},
): Promise<Outcome> {
  const startedAt = performance.now();
  const ms = (): number => performance.now() - startedAt;
  try {
    const response = await fetch(`${url}/v1/scheduling${path}`, {
      method,
      headers: {
        authorization: `Bearer ${TEST_KEY}`,
        ...(body !== undefined && { "content-type": "application/json" }),
        ...(options.key !== undefined && { "idempotency-key": options.key }),
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(options.timeoutMs ?? CALL_MS),
    });
    const text = await response.text();
    if (response.ok) return { kind: "ok", body: JSON.parse(text), headers: response.headers, ms: ms() };
    const reason = reasonOf(text);
    if (response.status === 503) return { kind: "unknown", why: reason, ms: ms() };
    return { kind: "refused", status: response.status, reason, ms: ms() };
  } catch (error) {
    const { name, cause } = error as Error & { cause?: { code?: string } };
    return { kind: "unknown", why: cause?.code ?? name, ms: ms() };
  }
}

/** As `call`, for calls that have to succeed. Resolves with the body. */
export async function must(
  url: string,
  method: string,
  path: string,
  body?: object,
  options: { readonly key?: string; readonly timeoutMs?: number } = {},
  // biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
): Promise<any> {
  const outcome = await call(url, method, path, body, options);
  if (outcome.kind !== "ok") throw new Error(`${method} ${path}: ${JSON.stringify(outcome)}`);
  return outcome.body;
}

function reasonOf(text: string): string {
  try {
    const { error } = JSON.parse(text);
    return error.details?.find?.((detail: { reason?: string }) => detail.reason)?.reason ?? error.reason ?? error.code;
  } catch {
    return text.slice(0, 200);
  }
}

/** Calls `probe` until it answers something else than undefined; rejects after `deadlineMs`. */
export async function until<T>(
  what: string,
  deadlineMs: number,
  probe: () => Promise<T | undefined> | T | undefined,
): Promise<T> {
  const endsAt = performance.now() + deadlineMs;
  for (;;) {
    const found = await probe();
    if (found !== undefined) return found;
    if (performance.now() > endsAt) throw new Error(`${what}: not within ${deadlineMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Runs `work` on every item, `width` of them at a time. */
export async function eachOf<T>(items: Iterable<T>, width: number, work: (item: T) => Promise<void>): Promise<void> {
  const iterator = items[Symbol.iterator]();
  await Promise.all(
    Array.from({ length: width }, async () => {
      for (let next = iterator.next(); !next.done; next = iterator.next()) await work(next.value);
    }),
  );
}
