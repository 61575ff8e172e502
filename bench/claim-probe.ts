import { setTimeout as delay } from "node:timers/promises";
import { QueueService } from "../gen/scheduling/v1/queue_service_pb.js";
import type { Carillon } from "./contestants/carillon.ts";
import { type Cycle, rateOver, startCycle } from "./cycle.ts";
import { type Measures, percentiles } from "./measure.ts";

const EVERY_MS = 50;
const MESSAGES = 10;

const WARM_MS = 2_000;

/** Pulls a few messages now and then beside a cycle's stream, and times the pull. They are acked. */
export interface ClaimProbe extends AsyncDisposable {
  /** Times of the pulls since the last look. */
  look(): Measures;
}

export function startClaimProbe({ grpc, queue }: Carillon, cycle: Cycle): ClaimProbe {
  let times: number[] = [];
  let stopped = false;
  const loop = (async () => {
    while (!stopped) {
      const startedAt = performance.now();
      const { messages } = await grpc.unary(QueueService.method.consume, { queue, maxMessages: MESSAGES });
      times.push(performance.now() - startedAt);
      const items = messages.map(({ messageId, receipt = "" }) => ({ messageId, receipt }));
      if (items.length > 0) await grpc.unary(QueueService.method.ackBatch, { queue, items });
      cycle.count(messages.length);
      await delay(EVERY_MS);
    }
  })();
  loop.catch(() => {});
  return {
    look() {
      const looked = percentiles(times);
      times = [];
      return looked;
    },
    async [Symbol.asyncDispose]() {
      stopped = true;
      await loop;
    },
  };
}

/** The rate of a cycle and the times of its claims: `per_s`, `claim_p50_ms`, `claim_p99_ms`. */
export async function cycleWithClaims(carillon: Carillon, seconds: number): Promise<Measures> {
  await using cycle = await startCycle(carillon);
  await using probe = startClaimProbe(carillon, cycle);
  await delay(WARM_MS);
  probe.look();
  const rate = await rateOver(cycle, seconds);
  const { p50_ms: p50 = Number.NaN, p99_ms: p99 = Number.NaN } = probe.look();
  return { ...rate, claim_p50_ms: p50, claim_p99_ms: p99 };
}
