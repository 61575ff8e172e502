import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  CancelTaskResponseSchema,
  type ListRunsRequest,
  RescheduleTaskResponseSchema,
  RunTaskResponseSchema,
  type ScheduleTaskRequest,
  ScheduleTaskResponseSchema,
  type TaskService,
} from "../../gen/scheduling/v1/task_service_pb.js";
import type { Db } from "../db/schema.ts";
import { parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import { listRuns, type RunFilter } from "../store/runs.ts";
import {
  cancelTask,
  findTask,
  listTasks,
  lockTask,
  type NewTask,
  rescheduleTask,
  runTask,
  scheduleTask,
  TASK_DEFAULTS,
  type TaskView,
  taskTimes,
} from "../store/tasks.ts";
import { checkTarget } from "../webhook/target.ts";
import { type AppContext, projectOf } from "./context.ts";
import { fromRunKind, fromRunState, toRun } from "./convert-run.ts";
import { fromTaskState, toTask, toTaskState } from "./convert-task.ts";
import { instantOf } from "./instant.ts";
import { lastIdOf, toPage } from "./newest-first.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { checkPayload } from "./payload.ts";
import { checkSecret } from "./secret.ts";
import { headersToStore } from "./secret-headers.ts";

/** The calls on tasks, and the list of the runs of all kinds. */
export function taskService(app: AppContext): ServiceImpl<typeof TaskService> {
  return {
    async scheduleTask(req, ctx) {
      const answer = await once(app, ctx, ScheduleTaskResponseSchema, req, "", async (trx) => {
        const { now, latest } = await taskTimes(trx);
        return { task: toTask(await scheduleTask(trx, newTask(app, projectOf(ctx), req, latest), now)) };
      });
      app.wakeups.wake("runs");
      return answer;
    },

    getTask: async (req, ctx) => ({ task: toTask(await requireTask(app.db, ctx, req.taskId, findTask)) }),

    async listTasks(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const state = fromTaskState(req.state);
      const list = { list: "tasks", scope: state ?? "", prefix: "task" } as const;
      const views = await listTasks(app.db, projectOf(ctx), state, lastIdOf(list, req.cursor), limit + 1);
      return toPage(list, views, limit, ({ task }) => task.task_id, toTask);
    },

    async cancelTask(req, ctx) {
      return once(app, ctx, CancelTaskResponseSchema, req, req.taskId, async (trx) => {
        const view = await requireTask(trx, ctx, req.taskId, lockTask);
        const canceled = await cancelTask(trx, view);
        return { taskId: req.taskId, canceled, state: toTaskState(canceled ? "canceled" : view.task.state) };
      });
    },

    async rescheduleTask(req, ctx) {
      const answer = await once(app, ctx, RescheduleTaskResponseSchema, req, req.taskId, async (trx) => {
        const { now, latest } = await taskTimes(trx);
        const runAt = runAtOf(req, latest);
        const view = await requireTask(trx, ctx, req.taskId, lockTask);
        if (view.task.state !== "scheduled") {
          throw new Refusal("TASK_NOT_SCHEDULED", { task_id: req.taskId, state: view.task.state });
        }
        await rescheduleTask(trx, view, runAt, now);
        return { task: toTask(await requireTask(trx, ctx, req.taskId, findTask)) };
      });
      app.wakeups.wake("runs");
      return answer;
    },

    async runTask(req, ctx) {
      const answer = await once(app, ctx, RunTaskResponseSchema, req, req.taskId, async (trx) => {
        const view = await requireTask(trx, ctx, req.taskId, lockTask);
        const { now } = await taskTimes(trx);
        const run = await runTask(trx, view, now);
        if (run === undefined) throw new Refusal("TASK_RUNNING", { task_id: req.taskId });
        return { run: toRun(run) };
      });
      app.wakeups.wake("runs");
      return answer;
    },

    async listRuns(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const filter = runFilter(req);
      const list = { list: "runs", scope: JSON.stringify(filter ?? ""), prefix: "run" } as const;
      const before = lastIdOf(list, req.cursor);
      if (filter === undefined) return { items: [] };
      const runs = await listRuns(app.db, projectOf(ctx), filter, before, limit + 1);
      return toPage(
        list,
        runs,
        limit,
        (run) => run.run_id,
        (run) => toRun(run),
      );
    },
  };
}

/** The caller's task, read by `read`. @throws Refusal TASK_NOT_FOUND */
async function requireTask(db: Db, ctx: HandlerContext, id: string, read: typeof findTask): Promise<TaskView> {
  const taskId = parseId("task", id);
  const view = taskId === undefined ? undefined : await read(db, projectOf(ctx), taskId);
  if (view === undefined) throw new Refusal("TASK_NOT_FOUND", { task_id: id });
  return view;
}

function newTask(app: AppContext, projectId: string, req: ScheduleTaskRequest, latest: Date): NewTask {
  const contentType = req.contentType || TASK_DEFAULTS.content_type;
  if (req.payload !== undefined) checkPayload(app.limits, "payload", req.payload, contentType);
  checkSecret(req.secret);
  return {
    project_id: projectId,
    name: req.name,
    url: checkTarget("url", req.url, app.targets),
    payload: req.payload === undefined ? null : Buffer.from(req.payload),
    content_type: contentType,
    headers: JSON.stringify(headersToStore("headers", req.headers)),
    secret: req.secret || null,
    retries: req.retries ?? TASK_DEFAULTS.retries,
    timeout_seconds: req.timeoutSeconds ?? TASK_DEFAULTS.timeout_seconds,
    grace_seconds: req.graceSeconds ?? null,
    run_at: runAtOf(req, latest),
  };
}

function runAtOf(req: Pick<ScheduleTaskRequest, "runAt">, latest: Date): Date {
  if (req.runAt === undefined) throw Refusal.field("run_at", "is required");
  const runAt = instantOf("run_at", req.runAt);
  if (runAt > latest) throw Refusal.field("run_at", "must be at most 10 years ahead");
  return runAt;
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
    since: req.since === undefined ? undefined : instantOf("since", req.since),
    until: req.until === undefined ? undefined : instantOf("until", req.until),
  };
}
