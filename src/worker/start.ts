import type { Db } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import type { QueueTally } from "../store/queue-tally.ts";
import type { Egress } from "../webhook/post.ts";
import { createBackfiller } from "./backfiller.ts";
import { ClockMover } from "./clock-mover.ts";
import { createDispatcher } from "./dispatcher.ts";
import { EndpointWatch } from "./endpoint-watch.ts";
import { groupKeeperTick } from "./group-keeper.ts";
import { historianTick } from "./historian.ts";
import { createLookout } from "./lookout.ts";
import { type Loop, type LoopOptions, startLoop, type Tick } from "./loop.ts";
import { messageReaperTick } from "./message-reaper.ts";
import { prunerTick } from "./pruner.ts";
import { Pusher } from "./pusher.ts";
import { createRedriver } from "./redriver.ts";
import { createReplayer } from "./replayer.ts";
import { createRunReaper } from "./run-reaper.ts";
import { createScheduler } from "./scheduler.ts";

export interface WorkersOptions {
  readonly db: Db;
  readonly wakeups: Wakeups;
  readonly tally: QueueTally;
  readonly egress: Egress;
  /** Most outbound requests of this node at a time: as many for runs as for pushes. */
  readonly concurrency: number;
  /** How long the records of requests are kept, in days. */
  readonly deliveryLogDays: number;
  /** How long `stop` lets requests under way finish, in milliseconds. */
  readonly graceMs: number;
  readonly onFault: (fault: unknown, about: object) => void;
}

/** What a node does by the clock, running. Disposing it takes no more work and waits for the work in hand, in grace. */
export interface Workers extends AsyncDisposable {
  /** Moves the clock where it is virtual; of no use elsewhere. */
  readonly clock: ClockMover;
}

/** Polls, in milliseconds: the longest delay when no wake-up comes. */
const DUE_POLL_MS = 1_000;
/** What the lookout wakes looks by itself as well, in case the lookout misses something. */
const WATCHED_POLL_MS = 30_000;
const REAP_POLL_MS = 5_000;
const GROUPS_POLL_MS = 5_000;
const PRUNE_POLL_MS = 30_000;
const HISTORY_POLL_MS = 5_000;

/** Starts every worker of this node. */
export function startWorkers({
  db,
  wakeups,
  tally,
  egress,
  concurrency,
  deliveryLogDays,
  graceMs,
  onFault,
}: WorkersOptions): Workers {
  const onError = (error: unknown, context: object): void => onFault(error, context);
  const watch = new EndpointWatch({ db, wakeups, onFault: (fault) => onFault(fault, { worker: "endpoint watch" }) });
  const dispatcher = createDispatcher({ db, egress, watch, wakeups, concurrency, graceMs, onError });
  const pusher = new Pusher({ db, wakeups, tally, egress, watch, concurrency, onFault: (fault) => onFault(fault, {}) });

  const start = (name: string, tick: Tick, rest: Pick<LoopOptions, "idleMs" | "topic">): Loop =>
    startLoop(tick, { name, wakeups, onError: (worker, error) => onFault(error, { worker }), ...rest });
  const loops = {
    crons: start("scheduler", createScheduler({ db, wakeups, onError }), { idleMs: WATCHED_POLL_MS, topic: "crons" }),
    runs: start("dispatcher", dispatcher.tick, { idleMs: WATCHED_POLL_MS, topic: "runs" }),
    pushes: start(
      "pusher",
      async (signal) => ({ done: await pusher.tick(signal), nextDueInMs: pusher.msUntilRoom() }),
      {
        idleMs: WATCHED_POLL_MS,
        topic: "pushes",
      },
    ),
    redrives: start("redriver", createRedriver({ db, wakeups }), { idleMs: WATCHED_POLL_MS, topic: "redrives" }),
    replays: start("replayer", createReplayer({ db, wakeups }), { idleMs: WATCHED_POLL_MS, topic: "replays" }),
    backfills: start("backfiller", createBackfiller({ db, wakeups }), { idleMs: WATCHED_POLL_MS, topic: "backfills" }),
    leases: start("run reaper", createRunReaper({ db, wakeups }), { idleMs: REAP_POLL_MS }),
  };
  const reapers = [
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
  ];
  const others = [
    start("lookout", createLookout(db, wakeups), { idleMs: DUE_POLL_MS }),
    start(
      "historian",
      counted((signal) => historianTick(db, signal)),
      { idleMs: HISTORY_POLL_MS },
    ),
    start(
      "pruner",
      counted((signal) => prunerTick(db, signal, deliveryLogDays)),
      { idleMs: PRUNE_POLL_MS },
    ),
  ];

  return {
    clock: new ClockMover({ db, loops, reapers, dispatcher, pusher, watch }),
    async [Symbol.asyncDispose]() {
      await Promise.all([
        ...[...Object.values(loops), ...reapers, ...others].map((loop) => loop[Symbol.asyncDispose]()),
        dispatcher[Symbol.asyncDispose](),
        pusher.stop(graceMs),
      ]);
      await watch[Symbol.asyncDispose]();
    },
  };
}

function counted(tick: (signal: AbortSignal) => Promise<number>): Tick {
  return async (signal) => ({ done: await tick(signal) });
}
