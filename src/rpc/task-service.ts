import type { ServiceImpl } from "@connectrpc/connect";
import {
  CancelTaskResponseSchema,
  type ListRunsRequest,
  RescheduleTaskResponseSchema,
  RotateTaskSecretResponseSchema,
  RunTaskResponseSchema,
  ScheduleTaskResponseSchema,
  type TaskService,
} from "../../gen/scheduling/v1/task_service_pb.js";
import { formatCursor } from "../domain/cursor.ts";
import { formatId, parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import type { RunFilter } from "../store/runs.ts";
import { cancelTask, findTask, listTasks, lockTask, rescheduleTask, runTask, taskMoment } from "../store/tasks.ts";
import { type AppContext, projectOf } from "./context.ts";
import { fromRunDisposition, fromRunKind, fromRunState, toRun } from "./convert-run.ts";
import { toTask, toTaskState } from "./convert-task.ts";
import { requireTask } from "./find-task.ts";
import { instantOf } from "./instant.ts";
import { lastIdOf } from "./newest-first.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { runsPage } from "./runs-page.ts";
import { checkSecret, rotateAsAsked } from "./secret.ts";
import { taskBulkHandlers } from "./task-bulk-handlers.ts";
import { taskExplainHandler } from "./task-explain-handler.ts";
import { toTaskFilter } from "./task-filter.ts";
import { scheduleByRequest } from "./task-scheduling.ts";
import { runAtOf } from "./task-settings.ts";

/** The calls on tasks, and the list of the runs of all kinds. */
export function taskService(app: AppContext): ServiceImpl<typeof TaskService> {
  return {
    async scheduleTask(req, ctx) {
      const answer = await once(app, ctx, ScheduleTaskResponseSchema, req, "", async (trx) => {
        return { task: await scheduleByRequest(app, trx, projectOf(ctx), req) };
      });
      app.wakeups.wake("runs");
      return answer;
    },

    getTask: async (req, ctx) => ({ task: toTask(await requireTask(app.db, ctx, req.taskId, findTask)) }),

    async listTasks(req, ctx) {
      const filter = toTaskFilter("", req);
      const list = { list: "tasks", scope: JSON.stringify(filter ?? ""), prefix: "task" } as const;
      const before = lastIdOf(list, req.cursor);
      if (filter === undefined) return { items: [] };
      const { tasks, next } = await listTasks(app.db, projectOf(ctx), filter, before, req.limit ?? PAGE_LIMIT);
      return {
        items: tasks.map(toTask),
        ...(next !== undefined && { nextCursor: formatCursor(list.list, list.scope, [formatId("task", next)]) }),
      };
    },

    async cancelTask(req, ctx) {
      return once(app, ctx, CancelTaskResponseSchema, req, req.taskId, async (trx) => {
        const view = await requireTask(trx, ctx, req.taskId, lockTask);
        const canceled = await cancelTask(trx, view);
        return { taskId: req.taskId, canceled, state: toTaskState(canceled ? "canceled" : view.task.state) };
      });
    },

    rotateTaskSecret(req, ctx) {
      checkSecret(req.secret);
      return once(app, ctx, RotateTaskSecretResponseSchema, req, req.taskId, async (trx) => {
        const { task } = await requireTask(trx, ctx, req.taskId, lockTask);
        const owner = { projectId: task.project_id, ownerId: task.task_id };
        return { taskId: req.taskId, ...(await rotateAsAsked(app.vault, trx, owner, req)) };
      });
    },

    async rescheduleTask(req, ctx) {
      const answer = await once(app, ctx, RescheduleTaskResponseSchema, req, req.taskId, async (trx) => {
        const moment = await taskMoment(trx);
        const runAt = runAtOf(req, moment);
        const view = await requireTask(trx, ctx, req.taskId, lockTask);
        if (view.task.state !== "scheduled") {
          throw new Refusal("TASK_NOT_SCHEDULED", { task_id: req.taskId, state: view.task.state });
        }
        return { task: toTask(await rescheduleTask(trx, view, runAt, moment.now)) };
      });
      app.wakeups.wake("runs");
      return answer;
    },

    async runTask(req, ctx) {
      const answer = await once(app, ctx, RunTaskResponseSchema, req, req.taskId, async (trx) => {
        const view = await requireTask(trx, ctx, req.taskId, lockTask);
        const { now } = await taskMoment(trx);
        const run = await runTask(trx, view, now);
        if (run === undefined) throw new Refusal("TASK_RUNNING", { task_id: req.taskId });
        return { run: toRun(run) };
      });
      app.wakeups.wake("runs");
      return answer;
    },

    ...taskBulkHandlers(app),
    ...taskExplainHandler(app),

    listRuns: (req, ctx) => runsPage(app.db, projectOf(ctx), "runs", runFilter(req), req),
  };
}

/** What a list of runs shows; undefined when it can show nothing, because a filter names what cannot exist. */
function runFilter(req: ListRunsRequest): RunFilter | undefined {
  const cronId = req.cronId === "" ? undefined : parseId("cron", req.cronId);
  const taskId = req.taskId === "" ? undefined : parseId("task", req.taskId);
  if (req.cronId !== "" && cronId === undefined) return undefined;
  if (req.taskId !== "" && taskId === undefined) return undefined;
  return {
    cronId,
    taskId,
    state: fromRunState(req.state),
    kind: fromRunKind(req.kind),
    disposition: fromRunDisposition(req.disposition),
    since: req.since === undefined ? undefined : instantOf("since", req.since),
    until: req.until === undefined ? undefined : instantOf("until", req.until),
  };
}
