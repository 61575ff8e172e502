import type { Db } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import { dueBackfills, msUntilNextBackfillStep, stepBackfill } from "../store/backfills.ts";
import type { Tick } from "./loop.ts";
import { createStepper } from "./stepper.ts";

export interface BackfillerOptions {
  readonly db: Db;
  readonly wakeups?: Wakeups;
}

/** One step of each backfill that is due. */
export function createBackfiller({ db, wakeups }: BackfillerOptions): Tick {
  return createStepper(db, {
    due: dueBackfills,
    step: stepBackfill,
    msUntilNext: msUntilNextBackfillStep,
    onStepped: (_, started) => {
      if (started > 0) wakeups?.wake("runs");
    },
  });
}
