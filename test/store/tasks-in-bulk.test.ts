import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { expect, test } from "vitest";
import { TaskState } from "../../gen/scheduling/v1/task_service_pb.js";
import { countTasks } from "../../src/store/task-filter.ts";
import { type RunWorld, runWorld } from "../support/runs.ts";

const NEVER = new AbortController().signal;
const TASKS = 60;
const LABELS = 10;

async function scheduleMany(world: RunWorld, inSeconds: number): Promise<void> {
  const runAt = timestampFromDate(new Date((await world.database.now()).getTime() + inSeconds * 1_000));
  for (let n = 0; n < TASKS; n++) {
    await world.tasks.scheduleTask({ url: world.receiver.url, runAt, labels: { n: `${n % LABELS}` } });
  }
}

test("tasks that are canceled while nodes start them are canceled or sent, never both", async () => {
  await using world = await runWorld();
  await using first = world.newDispatcher({ concurrency: 4 });
  await using second = world.newDispatcher({ concurrency: 4 });
  await scheduleMany(world, 0);
  const cancel = async (n: number) =>
    (await world.tasks.cancelTasks({ filter: { state: TaskState.SCHEDULED, labels: [`n=${n}`] } })).changed;
  let canceling = true;
  const dispatching = [first, second].map(async (dispatcher) => {
    while (canceling) await dispatcher.tick(NEVER);
    await dispatcher.settled();
  });
  let canceled = 0;
  try {
    for (let n = 0; n < LABELS; n++) canceled += await cancel(n);
  } finally {
    canceling = false;
  }
  await Promise.all(dispatching);
  await world.dispatch();
  const stand = async (state: TaskState) => (await world.tasks.listTasks({ state, limit: 500 })).items.length;
  expect(await stand(TaskState.CANCELED)).toBe(canceled);
  expect(await stand(TaskState.SUCCEEDED)).toBe(TASKS - canceled);
  expect(world.receiver.count).toBe(TASKS - canceled);
  expect(canceled).toBeGreaterThan(0);
  expect(world.errors).toEqual([]);
});

test("two that cancel the same tasks at a time count each task once", async () => {
  await using world = await runWorld();
  await scheduleMany(world, 3_600);
  const cancel = () => world.tasks.cancelTasks({ filter: { labels: ["n=1"] } });
  const answers = await Promise.all([cancel(), cancel(), cancel()]);
  expect(answers.reduce((sum, { changed }) => sum + changed, 0)).toBe(TASKS / LABELS);
});

test("tasks that run while they are run once more do not get two runs", async () => {
  await using world = await runWorld();
  await scheduleMany(world, 3_600);
  const run = () => world.tasks.runTasks({ filter: { state: TaskState.SCHEDULED } });
  await Promise.all([run(), run(), world.dispatch(), run()]);
  await world.dispatch();
  const { items } = await world.tasks.listRuns({ limit: 500 });
  expect(items).toHaveLength(TASKS);
  expect(world.receiver.count).toBe(TASKS);
});

test("a task that is run by hand may start however late", async () => {
  await using world = await runWorld();
  const runAt = timestampFromDate(new Date((await world.database.now()).getTime() + 60_000));
  const { task } = await world.tasks.scheduleTask({ url: world.receiver.url, runAt, graceSeconds: 0 });
  await world.tasks.runTasks({ filter: { state: TaskState.SCHEDULED } });
  await world.database.advanceClock(3_600);
  await world.fire();
  await world.dispatch();
  expect(await world.tasks.getTask({ taskId: task?.taskId ?? "" })).toMatchObject({
    task: { state: TaskState.SUCCEEDED },
  });
});

test("a count that takes too long is refused", async () => {
  await using world = await runWorld();
  await scheduleMany(world, 3_600);
  const filter = { labels: { n: "1" } };
  expect(await countTasks(world.db, world.projectId, filter, undefined, NEVER)).toBe(TASKS / LABELS);
  await expect(countTasks(world.db, world.projectId, filter, undefined, AbortSignal.abort())).rejects.toMatchObject({
    reason: "TASKS_TOO_MANY",
  });
});
