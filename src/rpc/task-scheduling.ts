import type { MessageInitShape } from "@bufbuild/protobuf";
import { ScheduleOutcome, type ScheduleTaskRequest, type TaskSchema } from "../../gen/scheduling/v1/task_service_pb.js";
import type { Db } from "../db/schema.ts";
import { Refusal } from "../errors.ts";
import { setSigningSecret } from "../store/signing-keys.ts";
import { lockDebounced, replaceDebounced, takeThrottle } from "../store/task-keys.ts";
import { findTask, scheduleTask, type TaskMoment, type TaskView, taskMoment } from "../store/tasks.ts";
import type { AppContext } from "./context.ts";
import { toTask } from "./convert-task.ts";
import { sealSecret } from "./secret.ts";
import { newTask } from "./task-settings.ts";

/** How often a call looks again for the task of its debounce key, where others make and start tasks of it meanwhile. */
const MAX_LOOKS = 20;

/**
 * Schedules what a request asks for, or adds it to the task that stands for its key.
 *
 * @throws Refusal FIELD_INVALID, TARGET_REFUSED, PAYLOAD_TOO_LARGE, WRITE_CONFLICT
 */
export async function scheduleByRequest(
  app: AppContext,
  trx: Db,
  projectId: string,
  req: ScheduleTaskRequest,
): Promise<MessageInitShape<typeof TaskSchema>> {
  const { debounce, throttle } = req;
  if (debounce !== undefined && throttle !== undefined) {
    throw Refusal.field("throttle", "cannot be given beside debounce");
  }
  const moment = await taskMoment(trx);
  if (throttle !== undefined) {
    const taskId = await takeThrottle(trx, projectId, throttle.key, throttle.windowSeconds, moment.newId);
    if (taskId !== moment.newId) {
      newTask(app, projectId, req, moment);
      const view = await findTask(trx, projectId, taskId);
      // Tasks are kept for longer than any window.
      if (view === undefined) throw new Error("a throttle key stands for a task that is gone");
      return { ...toTask(view), outcome: ScheduleOutcome.THROTTLED };
    }
  }
  if (debounce !== undefined) return scheduleDebounced(app, trx, projectId, req, debounce.key, moment);
  const view = await schedule(app, trx, projectId, req, moment);
  if (view === undefined) throw new Error("a task without a key met another");
  return { ...toTask(view), ...(throttle !== undefined && { outcome: ScheduleOutcome.CREATED }) };
}

async function scheduleDebounced(
  app: AppContext,
  trx: Db,
  projectId: string,
  req: ScheduleTaskRequest,
  key: string,
  moment: TaskMoment,
): Promise<MessageInitShape<typeof TaskSchema>> {
  for (let look = 0; look < MAX_LOOKS; look++) {
    const waiting = await lockDebounced(trx, projectId, key);
    if (waiting !== undefined) {
      const owner = { projectId, ownerId: waiting.task_id };
      const newest = newTask(app, projectId, req, { ...moment, newId: waiting.task_id });
      const view = await replaceDebounced(trx, waiting, newest, moment.now);
      await setSigningSecret(trx, owner, req.secret === "" ? null : sealSecret(app.vault, owner, req.secret));
      return { ...toTask(view), outcome: ScheduleOutcome.REPLACED };
    }
    const view = await schedule(app, trx, projectId, req, moment);
    if (view !== undefined) return { ...toTask(view), outcome: ScheduleOutcome.CREATED };
  }
  throw new Refusal("WRITE_CONFLICT");
}

/** A new task; undefined when another that waits has its debounce key. */
async function schedule(
  app: AppContext,
  trx: Db,
  projectId: string,
  req: ScheduleTaskRequest,
  moment: TaskMoment,
): Promise<TaskView | undefined> {
  const task = newTask(app, projectId, req, moment);
  const view = await scheduleTask(trx, task, moment.now);
  const owner = { projectId, ownerId: task.task_id };
  if (view !== undefined && req.secret !== "") {
    await setSigningSecret(trx, owner, sealSecret(app.vault, owner, req.secret));
  }
  return view;
}
