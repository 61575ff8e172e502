import type { Db } from "../db/schema.ts";
import { queueTopic, type Wakeups } from "../db/wakeups.ts";
import { dueRedrives, msUntilNextStep, stepRedrive } from "../store/redrives.ts";
import type { Tick } from "./loop.ts";
import { createStepper } from "./stepper.ts";

export interface RedriverOptions {
  readonly db: Db;
  readonly wakeups?: Wakeups;
}

/** One step of each redrive that is due. */
export function createRedriver({ db, wakeups }: RedriverOptions): Tick {
  return createStepper(db, {
    due: dueRedrives,
    step: stepRedrive,
    msUntilNext: msUntilNextStep,
    onStepped({ project_id }, { moved, toQueue }) {
      if (moved === 0) return;
      wakeups?.wake(queueTopic(project_id, toQueue));
      wakeups?.wake("pushes");
    },
  });
}
