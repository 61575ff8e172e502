import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { expect, test } from "vitest";
import { ScheduleOutcome } from "../../gen/scheduling/v1/task_service_pb.js";
import { pruneRuns } from "../../src/store/runs-pruning.ts";
import { pruneThrottles } from "../../src/store/task-keys.ts";
import { runWorld } from "../support/runs.ts";

const NEVER = new AbortController().signal;

test("the newest call is sent, and each task once, however calls meet the start of their task", async () => {
  await using world = await runWorld();
  await using second = world.newDispatcher();
  let calling = true;
  const dispatching = [world.dispatcher, second].map(async (dispatcher) => {
    while (calling) await dispatcher.tick(NEVER);
    await dispatcher.settled();
  });
  const newest = new Map<string, number>();
  try {
    for (let n = 0; n < 60; n++) {
      const { task } = await world.tasks.scheduleTask({
        url: world.receiver.url,
        runAt: timestampFromDate(await world.database.now()),
        payload: Buffer.from(`${n}`),
        debounce: { key: "k" },
      });
      newest.set(task?.taskId ?? "", n);
    }
  } finally {
    calling = false;
  }
  await Promise.all(dispatching);
  await world.dispatch();
  const sent = world.receiver.requests.map(({ headers, body }) => [
    headers["carillon-task-id"],
    Number(body.toString()),
  ]);
  expect(sent.sort()).toEqual([...newest].sort());
  expect(newest.size).toBeGreaterThan(2);
  expect(world.errors).toEqual([]);
});

test("a throttle key is forgotten after its window, and its task only when that is over", async () => {
  await using world = await runWorld();
  const call = async () => {
    const runAt = timestampFromDate(await world.database.now());
    const throttle = { key: "k", windowSeconds: 604_800 };
    return (await world.tasks.scheduleTask({ url: world.receiver.url, runAt, throttle })).task ?? expect.fail();
  };
  const first = await call();
  await world.dispatch();
  await world.database.advanceClock(604_700);
  expect(await pruneThrottles(world.db, 10)).toBe(0);
  expect(await pruneRuns(world.db, 10)).toBe(0);
  expect(await call()).toMatchObject({ taskId: first.taskId, outcome: ScheduleOutcome.THROTTLED });
  await world.database.advanceClock(101);
  expect(await pruneThrottles(world.db, 10)).toBe(1);
  expect(await call()).toMatchObject({ outcome: ScheduleOutcome.CREATED });
});

test("the labels of a task go with it", async () => {
  await using world = await runWorld();
  const runAt = timestampFromDate(await world.database.now());
  await world.tasks.scheduleTask({ url: world.receiver.url, runAt, labels: { a: "1", b: "" } });
  const labels = () => world.db.selectFrom("task_labels").select(["name", "value"]).orderBy("name").execute();
  expect(await labels()).toEqual([
    { name: "a", value: "1" },
    { name: "b", value: "" },
  ]);
  await world.dispatch();
  await world.database.advanceClock(31 * 86_400);
  expect(await pruneRuns(world.db, 10)).toBe(1);
  expect(await labels()).toEqual([]);
});
