import type { Db } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import type { QueueTally } from "../store/queue-tally.ts";
import type { Egress } from "../webhook/post.ts";
import { createDispatcher } from "./dispatcher.ts";
import { groupKeeperTick } from "./group-keeper.ts";
import { historianTick } from "./historian.ts";
import { type LoopOptions, startLoop, type Tick } from "./loop.ts";
import { messageReaperTick } from "./message-reaper.ts";
import { prunerTick } from "./pruner.ts";
import { Pusher } from "./pusher.ts";
import { createRedriver } from "./redriver.ts";
import { createRunReaper } from "./run-reaper.ts";
import { createScheduler } from "./scheduler.ts";

export interface WorkersOptions {
  readonly db: Db;
  readonly wakeups: Wakeups;
  readonly tally: QueueTally;
  readonly egress: Egress;
  /** Most outbound requests of this node at a time: as many for runs as for pushes. */
  readonly concurrency: number;
  /** How long `stop` lets requests under way finish, in milliseconds. */
  readonly graceMs: number;
  readonly onFault: (fault: unknown, about: object) => void;
}

/** What a node does by the clock, running. Disposing it takes no more work and waits for the work in hand, in grace. */
export type Workers = AsyncDisposable;

/** Polls, in milliseconds: the longest delay when no wake-up comes. */
const DUE_POLL_MS = 1_000;
const REAP_POLL_MS = 5_000;
const REDRIVE_POLL_MS = 5_000;
const GROUPS_POLL_MS = 5_000;
const PRUNE_POLL_MS = 30_000;
const HISTORY_POLL_MS = 5_000;

/** Starts every worker of this node. */
export function startWorkers({ db, wakeups, tally, egress, concurrency, graceMs, onFault }: WorkersOptions): Workers {
  const onError = (error: unknown, context: object): void => onFault(error, context);
  const dispatcher = createDispatcher({ db, egress, wakeups, concurrency, graceMs, onError });
  const pusher = new Pusher({ db, wakeups, tally, egress, concurrency, onFault: (fault) => onFault(fault, {}) });

  const start = (name: string, tick: Tick, rest: Pick<LoopOptions, "idleMs" | "topic">): AsyncDisposable =>
    startLoop(tick, { name, wakeups, onError: (worker, error) => onFault(error, { worker }), ...rest });
  const loops = [
    start("scheduler", createScheduler({ db, wakeups, onError }), { idleMs: DUE_POLL_MS, topic: "crons" }),
    start("dispatcher", dispatcher.tick, { idleMs: DUE_POLL_MS, topic: "runs" }),
    start(
      "pusher",
      counted((signal) => pusher.tick(signal)),
      { idleMs: DUE_POLL_MS, topic: "pushes" },
    ),
    start("redriver", createRedriver({ db, wakeups }), { idleMs: REDRIVE_POLL_MS, topic: "redrives" }),
    start("run reaper", createRunReaper({ db, wakeups }), { idleMs: REAP_POLL_MS }),
    start(
      "message reaper",
      counted((signal) => messageReaperTick(db, wakeups, signal)),
      { idleMs: REAP_POLL_MS },
    ),
    start(
      "group keeper",
      counted((signal) => groupKeeperTick(db, signal)),
      { idleMs: GROUPS_POLL_MS },
    ),
    start(
      "historian",
      counted((signal) => historianTick(db, signal)),
      { idleMs: HISTORY_POLL_MS },
    ),
    start(
      "pruner",
      counted((signal) => prunerTick(db, signal)),
      { idleMs: PRUNE_POLL_MS },
    ),
  ];

  return {
    async [Symbol.asyncDispose]() {
      await Promise.all([
        ...loops.map((loop) => loop[Symbol.asyncDispose]()),
        dispatcher[Symbol.asyncDispose](),
        pusher.stop(graceMs),
      ]);
    },
  };
}

function counted(tick: (signal: AbortSignal) => Promise<number>): Tick {
  return async (signal) => ({ done: await tick(signal) });
}
