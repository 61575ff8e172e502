import { expect, test } from "vitest";
import { OverlapPolicy } from "../../gen/scheduling/v1/run_pb.js";
import { type Topic, Wakeups } from "../../src/db/wakeups.ts";
import { createLookout } from "../../src/worker/lookout.ts";
import { createJob, runWorld } from "../support/runs.ts";

const NEVER = new AbortController().signal;

test("the lookout wakes the workers of its node for which something is due, and no others", async () => {
  await using world = await runWorld();
  // Hears of nothing that other nodes say.
  await using wakeups = new Wakeups("postgres://127.0.0.1:1/none");
  const woken: Topic[] = [];
  for (const topic of ["crons", "runs", "redrives", "pushes"] as const) wakeups.on(topic, () => woken.push(topic));
  const look = createLookout(world.db, wakeups);

  await createJob(world, { overlapPolicy: OverlapPolicy.ALLOW });
  await look(NEVER);
  expect(woken).toEqual([]);
  await world.database.advanceClock(61);
  await look(NEVER);
  expect(woken).toEqual(["crons"]);
  await world.fire();
  await look(NEVER);
  expect(woken).toEqual(["crons", "runs"]);
});

test("the lookout wakes the scheduler for a fire that was not kept in time", async () => {
  await using world = await runWorld();
  await using wakeups = new Wakeups("postgres://127.0.0.1:1/none");
  const woken: Topic[] = [];
  wakeups.on("crons", () => woken.push("crons"));
  const look = createLookout(world.db, wakeups);

  await createJob(world, { finishGraceSeconds: 10 });
  await world.database.advanceClock(31);
  await world.fire();
  await look(NEVER);
  expect(woken).toEqual([]);
  await world.database.advanceClock(10);
  await look(NEVER);
  expect(woken).toEqual(["crons"]);
  await world.fire();
  await look(NEVER);
  expect(woken).toEqual(["crons"]);
});
