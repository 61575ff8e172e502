import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { RunKind, RunState, RunTrigger } from "../../gen/scheduling/v1/run_pb.js";
import { type ScheduleTaskRequestSchema, type Task, TaskState } from "../../gen/scheduling/v1/task_service_pb.js";
import { pruneRuns } from "../../src/store/runs-pruning.ts";
import { createJob, type RunWorld, runWorld } from "../support/runs.ts";

const NEVER = new AbortController().signal;

/** A task that is due in so many seconds. */
async function schedule(
  world: RunWorld,
  inSeconds: number,
  task: MessageInitShape<typeof ScheduleTaskRequestSchema> = {},
): Promise<Task> {
  const runAt = timestampFromDate(new Date((await world.database.now()).getTime() + inSeconds * 1_000));
  const answer = await world.tasks.scheduleTask({ url: world.receiver.url, runAt, ...task });
  return answer.task ?? expect.fail();
}

async function getTask(world: RunWorld, taskId: string): Promise<Task> {
  return (await world.tasks.getTask({ taskId })).task ?? expect.fail();
}

async function refusal(call: Promise<unknown>): Promise<ConnectError> {
  return ConnectError.from(
    await call.then(
      () => expect.fail("not refused"),
      (cause: unknown) => cause,
    ),
  );
}

describe("a task", () => {
  test("fires at its time and not before", async () => {
    await using world = await runWorld();
    const task = await schedule(world, 3_600, { name: "t", payload: Buffer.from("[1]") });
    expect(task).toMatchObject({ state: TaskState.SCHEDULED, retries: 3, timeoutSeconds: 30, name: "t" });
    expect(task.lastRun).toMatchObject({ state: RunState.PENDING, trigger: RunTrigger.SCHEDULE });
    await world.database.advanceClock(3_590);
    await world.dispatch();
    expect(world.receiver.count).toBe(0);
    await world.database.advanceClock(11);
    await world.dispatch();
    const [request] = world.receiver.requests;
    expect(request?.body.toString()).toBe("[1]");
    expect(request?.headers).toMatchObject({ "carillon-task-id": task.taskId });
    const done = await getTask(world, task.taskId);
    expect(done).toMatchObject({ state: TaskState.SUCCEEDED, lastRun: { state: RunState.SUCCEEDED, attempt: 1 } });
    expect(done.lastRun?.scheduledAt).toEqual(task.runAt);
    expect(done.updatedAt).toEqual(task.updatedAt);
  });

  test("of the past fires now", async () => {
    await using world = await runWorld();
    await schedule(world, -1e6);
    await world.dispatch();
    expect(world.receiver.count).toBe(1);
  });

  test("may be at most ten years ahead", async () => {
    await using world = await runWorld();
    const year = 365.25 * 86_400;
    expect(await schedule(world, 9.9 * year)).toMatchObject({ state: TaskState.SCHEDULED });
    expect(await refusal(schedule(world, 10.1 * year))).toMatchObject({ code: Code.InvalidArgument });
  });

  test("goes through retrying to failed with its run", async () => {
    await using world = await runWorld();
    world.receiver.respond({ status: 500 });
    const { taskId } = await schedule(world, 0, { retries: 1 });
    await world.dispatch();
    expect(await getTask(world, taskId)).toMatchObject({ state: TaskState.RETRYING });
    await world.database.advanceClock(5);
    await world.dispatch();
    expect(await getTask(world, taskId)).toMatchObject({
      state: TaskState.FAILED,
      lastRun: { state: RunState.FAILED, attempt: 2 },
    });
  });
});

describe("a task with a grace", () => {
  test("expires at once when it is later than that already", async () => {
    await using world = await runWorld();
    const task = await schedule(world, -120, { graceSeconds: 60 });
    expect(task).toMatchObject({
      state: TaskState.EXPIRED,
      lastRun: { state: RunState.CANCELED, error: "expired", attempt: 0 },
    });
  });

  test("expires when nobody could start it in time, and starts when it is in time", async () => {
    await using world = await runWorld();
    const late = await schedule(world, 60, { graceSeconds: 60 });
    const inTime = await schedule(world, 60, { graceSeconds: 600 });
    await world.database.advanceClock(300);
    await world.dispatch();
    expect(await getTask(world, late.taskId)).toMatchObject({
      state: TaskState.EXPIRED,
      lastRun: { state: RunState.CANCELED, error: "expired" },
    });
    expect(await getTask(world, inTime.taskId)).toMatchObject({ state: TaskState.SUCCEEDED });
    expect(world.receiver.count).toBe(1);
  });

  test("of 0 seconds starts on time", async () => {
    await using world = await runWorld();
    const { taskId } = await schedule(world, 0, { graceSeconds: 0 });
    await world.dispatch();
    expect(await getTask(world, taskId)).toMatchObject({ state: TaskState.SUCCEEDED });
  });
});

describe("canceling a task", () => {
  test("calls it off once", async () => {
    await using world = await runWorld();
    const { taskId } = await schedule(world, 60);
    expect(await world.tasks.cancelTask({ taskId })).toMatchObject({ canceled: true, state: TaskState.CANCELED });
    expect(await world.tasks.cancelTask({ taskId })).toMatchObject({ canceled: false, state: TaskState.CANCELED });
    await world.database.advanceClock(600);
    await world.dispatch();
    expect(world.receiver.count).toBe(0);
    expect(await getTask(world, taskId)).toMatchObject({ lastRun: { state: RunState.CANCELED } });
  });

  test("that is done changes nothing", async () => {
    await using world = await runWorld();
    const { taskId } = await schedule(world, 0);
    await world.dispatch();
    expect(await world.tasks.cancelTask({ taskId })).toMatchObject({ canceled: false, state: TaskState.SUCCEEDED });
  });

  test("lets the attempt under way finish without a retry", async () => {
    await using world = await runWorld();
    const answer = Promise.withResolvers<object>();
    world.receiver.respond(() => answer.promise);
    const { taskId } = await schedule(world, 0);
    await world.dispatcher.tick(NEVER);
    await world.receiver.next();
    expect(await world.tasks.cancelTask({ taskId })).toMatchObject({ canceled: true });
    answer.resolve({ status: 500 });
    await world.dispatcher.settled();
    await world.database.advanceClock(3_600);
    await world.dispatch();
    expect(await getTask(world, taskId)).toMatchObject({
      state: TaskState.CANCELED,
      lastRun: { state: RunState.CANCELED, responseStatus: 500, attempt: 1 },
    });
    expect(world.receiver.count).toBe(1);
  });
});

describe("rescheduling", () => {
  test("moves a task and its run", async () => {
    await using world = await runWorld();
    const { taskId } = await schedule(world, 60);
    const runAt = timestampFromDate(new Date((await world.database.now()).getTime() + 7_200_000));
    const { task } = await world.tasks.rescheduleTask({ taskId, runAt });
    expect(task).toMatchObject({ state: TaskState.SCHEDULED, runAt, lastRun: { scheduledAt: runAt } });
    await world.database.advanceClock(3_600);
    await world.dispatch();
    expect(world.receiver.count).toBe(0);
    await world.database.advanceClock(3_601);
    await world.dispatch();
    expect(world.receiver.count).toBe(1);
    const refused = await refusal(world.tasks.rescheduleTask({ taskId, runAt }));
    expect(refused.code).toBe(Code.FailedPrecondition);
  });
});

describe("running a task now", () => {
  test("fires a scheduled one instead of at its time", async () => {
    await using world = await runWorld();
    const { taskId } = await schedule(world, 3_600, { graceSeconds: 0 });
    expect((await world.tasks.runTask({ taskId })).run).toMatchObject({ trigger: RunTrigger.MANUAL, taskId });
    await world.dispatch();
    expect(await getTask(world, taskId)).toMatchObject({ state: TaskState.SUCCEEDED });
    await world.database.advanceClock(7_200);
    await world.dispatch();
    expect(world.receiver.count).toBe(1);
  });

  test("fires a done one once more, as another run", async () => {
    await using world = await runWorld();
    const task = await schedule(world, 0);
    await world.dispatch();
    const { run } = await world.tasks.runTask({ taskId: task.taskId });
    expect(run?.runId).not.toBe(task.lastRun?.runId);
    expect(await getTask(world, task.taskId)).toMatchObject({ state: TaskState.SCHEDULED });
    await world.dispatch();
    expect(await getTask(world, task.taskId)).toMatchObject({ state: TaskState.SUCCEEDED });
    expect((await world.tasks.listRuns({ taskId: task.taskId })).items.map(({ runId }) => runId)).toEqual([
      run?.runId,
      task.lastRun?.runId,
    ]);
  });

  test("is refused while it runs", async () => {
    await using world = await runWorld();
    const answer = Promise.withResolvers<object>();
    world.receiver.respond(() => answer.promise);
    const { taskId } = await schedule(world, 0);
    await world.dispatcher.tick(NEVER);
    await world.receiver.next();
    expect(await getTask(world, taskId)).toMatchObject({ state: TaskState.RUNNING });
    expect((await refusal(world.tasks.runTask({ taskId }))).code).toBe(Code.FailedPrecondition);
    answer.resolve({});
  });

  test("makes the next attempt of a retrying one at once", async () => {
    await using world = await runWorld();
    world.receiver.respond((_, index) => ({ status: index === 0 ? 500 : 200, headers: { "retry-after": "600" } }));
    const { taskId } = await schedule(world, 0);
    await world.dispatch();
    await world.tasks.runTask({ taskId });
    await world.dispatch();
    expect(await getTask(world, taskId)).toMatchObject({
      state: TaskState.SUCCEEDED,
      lastRun: { attempt: 2, trigger: RunTrigger.SCHEDULE },
    });
  });
});

test("a task that is not there is NOT_FOUND to every call", async () => {
  await using world = await runWorld();
  const runAt = timestampFromDate(await world.database.now());
  const { taskId: other } = await schedule(world, 0);
  for (const taskId of ["", "task_x", other.replace("task", "cron"), `task_${"0".repeat(26)}`]) {
    expect((await refusal(world.tasks.getTask({ taskId }))).code).toBe(Code.NotFound);
    expect((await refusal(world.tasks.cancelTask({ taskId }))).code).toBe(Code.NotFound);
    expect((await refusal(world.tasks.runTask({ taskId }))).code).toBe(Code.NotFound);
    expect((await refusal(world.tasks.rescheduleTask({ taskId, runAt }))).code).toBe(Code.NotFound);
  }
});

test("tasks are listed newest first, page by page, in one state", async () => {
  await using world = await runWorld();
  const ids: string[] = [];
  for (let index = 0; index < 5; index++) ids.unshift((await schedule(world, 60)).taskId);
  await world.tasks.cancelTask({ taskId: ids[2] ?? "" });
  const first = await world.tasks.listTasks({ state: TaskState.SCHEDULED, limit: 3 });
  expect(first.items.map(({ taskId }) => taskId)).toEqual([ids[0], ids[1], ids[3]]);
  const cursor = first.nextCursor ?? expect.fail();
  const second = await world.tasks.listTasks({ state: TaskState.SCHEDULED, limit: 3, cursor });
  expect(second.items.map(({ taskId }) => taskId)).toEqual([ids[4]]);
  expect(second.nextCursor).toBeUndefined();
  expect((await refusal(world.tasks.listTasks({ cursor }))).code).toBe(Code.InvalidArgument);
});

test("runs of every kind are listed by the filters that are given", async () => {
  await using world = await runWorld();
  const task = await schedule(world, -3_600);
  const { cronId } = await createJob(world);
  await world.cron.triggerCronJob({ cronId });
  await world.dispatch();
  await world.cron.triggerCronJob({ cronId });
  const count = async (filter: Parameters<RunWorld["tasks"]["listRuns"]>[0]) =>
    (await world.tasks.listRuns(filter)).items.length;
  expect(await count({})).toBe(3);
  expect(await count({ cronId })).toBe(2);
  expect(await count({ taskId: task.taskId })).toBe(1);
  expect(await count({ cronId, taskId: task.taskId })).toBe(0);
  expect(await count({ kind: RunKind.TASK })).toBe(1);
  expect(await count({ kind: RunKind.PUSH })).toBe(0);
  expect(await count({ state: RunState.PENDING })).toBe(1);
  expect(await count({ cronId: "nonsense" })).toBe(0);
  const taskTime = task.runAt ?? expect.fail();
  expect(await count({ since: taskTime })).toBe(3);
  expect(await count({ until: taskTime })).toBe(0);
  expect(await count({ until: timestampFromDate(new Date(timestampDate(taskTime).getTime() + 1)) })).toBe(1);
});

test("a run is not found under another cron job", async () => {
  await using world = await runWorld();
  const { cronId } = await createJob(world);
  const { cronId: other } = await createJob(world);
  const { run } = await world.cron.triggerCronJob({ cronId });
  const runId = run?.runId ?? "";
  expect((await world.cron.getCronRun({ cronId, runId })).run?.runId).toBe(runId);
  for (const request of [
    { cronId: other, runId },
    { cronId: "", runId },
    { cronId, runId: "run_x" },
  ]) {
    expect((await refusal(world.cron.getCronRun(request))).code).toBe(Code.NotFound);
  }
});

test("a done task is pruned with its last run", async () => {
  await using world = await runWorld();
  const { taskId } = await schedule(world, 0);
  await world.dispatch();
  await world.database.advanceClock(20 * 86_400);
  await world.tasks.runTask({ taskId });
  await world.dispatch();
  await world.database.advanceClock(11 * 86_400);
  expect(await pruneRuns(world.db, 10)).toBe(1);
  expect(await getTask(world, taskId)).toMatchObject({ state: TaskState.SUCCEEDED });
  await world.database.advanceClock(20 * 86_400);
  expect(await pruneRuns(world.db, 10)).toBe(1);
  expect((await refusal(world.tasks.getTask({ taskId }))).code).toBe(Code.NotFound);
});
