import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type { PingService } from "../../gen/scheduling/v1/ping_service_pb.js";
import { formatId } from "../domain/ids.ts";
import {
  hashPingToken,
  isPingToken,
  PINGS_PER_MINUTE,
  type Ping,
  type PingAllowance,
  parseSignal,
  pingBody,
  takePingAllowance,
} from "../domain/ping.ts";
import { Refusal } from "../errors.ts";
import { findPinged } from "../store/ping-tokens.ts";
import { takePing } from "../store/pings.ts";
import { type AppContext, warn } from "./context.ts";

/** Most pings that are being taken at a time: anybody may send them. */
const MAX_UNDER_WAY = 100;
/** Most monitors whose allowance is remembered. One that is forgotten has all of it again. */
const MAX_REMEMBERED = 10_000;

/** Takes pings, from anybody who has a token. */
export function pingService(app: AppContext): ServiceImpl<typeof PingService> {
  const allowances = new Map<string, PingAllowance>();
  let underWay = 0;

  /** @throws Refusal TOO_MANY_PINGS */
  function spendAllowance(cronId: string): void {
    const allowance = takePingAllowance(allowances.get(cronId), performance.now());
    if (allowance === undefined) throw new Refusal("TOO_MANY_PINGS", { limit: String(PINGS_PER_MINUTE) });
    allowances.delete(cronId);
    allowances.set(cronId, allowance);
    const oldest = allowances.keys().next();
    if (allowances.size > MAX_REMEMBERED && !oldest.done) allowances.delete(oldest.value);
  }

  async function take(token: string, ping: Ping, ctx: HandlerContext): Promise<string | undefined> {
    const monitor = await findPinged(app.db, hashPingToken(token));
    if (monitor === undefined) throw new Refusal("PING_TOKEN_UNKNOWN");
    spendAllowance(monitor.cronId);
    const taken = await takePing(app.db, monitor, ping);
    if (taken === undefined) throw new Refusal("PING_TOKEN_UNKNOWN");
    if (taken.note !== undefined) warn(ctx, taken.note);
    // Events of it may be due.
    if (ping.signal === "success" || ping.signal === "fail") app.wakeups.wake("runs");
    return taken.run?.run_id;
  }

  return {
    async ping(req, ctx) {
      // A cache that answered would keep the ping from us.
      ctx.responseHeader.set("cache-control", "no-store");
      const told = parseSignal(req.signal);
      if (told === undefined) throw Refusal.field("signal", "must be a signal, or an exit code from 0 to 255");
      if (!isPingToken(req.token)) throw new Refusal("PING_TOKEN_UNKNOWN");
      if (underWay >= MAX_UNDER_WAY) throw new Refusal("TOO_BUSY");
      underWay += 1;
      try {
        const ping = { ...told, rid: req.rid.toLowerCase() || null, body: pingBody(req.body) };
        const runId = await take(req.token, ping, ctx);
        return { answer: "OK", ...(runId !== undefined && { runId: formatId("run", runId) }) };
      } finally {
        underWay -= 1;
      }
    },
  };
}
