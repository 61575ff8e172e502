import type { HandlerContext } from "@connectrpc/connect";

/** Longest that a call may walk through what its filter finds, in milliseconds: less than any call may take. */
const WALK_MS = 20_000;

/** Aborted when the time of a call's walk is over, or its caller is gone. */
export function walkTime(ctx: HandlerContext): AbortSignal {
  return AbortSignal.any([ctx.signal, AbortSignal.timeout(WALK_MS)]);
}
