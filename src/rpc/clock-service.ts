import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type { AdvanceClockRequest, ClockService } from "../../gen/scheduling/v1/clock_service_pb.js";
import { Refusal } from "../errors.ts";
import { countFires } from "../store/cron-ledger.ts";
import { lookAhead, nextInstant } from "../store/due-work.ts";
import { type AppContext, projectOf } from "./context.ts";
import { instantOf } from "./instant.ts";

/** How long a call moves the clock, in milliseconds, and which part of the time that its caller leaves it. */
const MOVE_MS = 10_000;
const CALLERS_PART = 0.8;
const MAX_STEPS = 10_000;

/** The calls on the server's clock. */
export function clockService(app: AppContext): ServiceImpl<typeof ClockService> {
  return {
    async getClock() {
      const ahead = await lookAhead(app.db);
      const virtual = app.moveClock !== undefined;
      const nextAt = virtual ? nextInstant(ahead) : undefined;
      return {
        now: timestampFromDate(ahead.now),
        virtual,
        ...(nextAt !== undefined && { nextAt: timestampFromDate(nextAt) }),
      };
    },

    async advanceClock(req, ctx) {
      if (app.moveClock === undefined) throw new Refusal("CLOCK_NOT_VIRTUAL");
      const targetOf = targetIn(req);
      const bounds = { maxSteps: req.maxSteps ?? MAX_STEPS, withinMs: timeOf(ctx), signal: ctx.signal };
      const moved = await app.moveClock(targetOf, bounds);
      if (moved === undefined) throw new Refusal("CLOCK_MOVING");
      return {
        now: timestampFromDate(moved.now),
        reached: moved.reached,
        settled: moved.settled,
        steps: moved.steps,
        fires: await countFires(app.db, projectOf(ctx), ...moved.passed),
        ...(moved.nextAt !== undefined && { nextAt: timestampFromDate(moved.nextAt) }),
      };
    },
  };
}

/** Where the clock is to go, by the instant at which it stands. @throws Refusal FIELD_INVALID */
function targetIn({ seconds, to }: AdvanceClockRequest): (now: Date) => Date {
  if ((seconds === undefined) === (to === undefined)) {
    throw Refusal.field(to === undefined ? "seconds" : "to", "is one of seconds and to, of which one is needed");
  }
  if (seconds !== undefined) return (now) => new Date(now.getTime() + seconds * 1_000);
  const instant = to === undefined ? new Date(Number.NaN) : instantOf("to", to);
  return (now) => {
    if (instant < now) throw Refusal.field("to", `is before the clock, which is at ${now.toISOString()}`);
    return instant;
  };
}

function timeOf(ctx: HandlerContext): number {
  return Math.min(MOVE_MS, CALLERS_PART * (ctx.timeoutMs() ?? Number.POSITIVE_INFINITY));
}
