import type { Db } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import { dueReplays, msUntilNextReplayStep, stepReplay } from "../store/replays.ts";
import type { Tick } from "./loop.ts";
import { createStepper } from "./stepper.ts";

export interface ReplayerOptions {
  readonly db: Db;
  readonly wakeups?: Wakeups;
}

/** One step of each replay that is due. */
export function createReplayer({ db, wakeups }: ReplayerOptions): Tick {
  return createStepper(db, {
    due: dueReplays,
    step: stepReplay,
    msUntilNext: msUntilNextReplayStep,
    onStepped: (_, replayed) => {
      if (replayed > 0) wakeups?.wake("runs");
    },
  });
}
