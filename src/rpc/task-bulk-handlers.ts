import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  CancelTasksResponseSchema,
  type RescheduleTasksRequest,
  RescheduleTasksResponseSchema,
  RunTasksResponseSchema,
  type TaskFilter as TaskFilterMessage,
  type TaskService,
} from "../../gen/scheduling/v1/task_service_pb.js";
import type { Db, TaskState } from "../db/schema.ts";
import { formatCursor } from "../domain/cursor.ts";
import { formatId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import { countTasks, type TaskFilter } from "../store/task-filter.ts";
import { type TaskMoment, taskMoment } from "../store/tasks.ts";
import {
  type BulkRange,
  type BulkStep,
  cancelTasks,
  type Move,
  rescheduleTasks,
  runTasks,
} from "../store/tasks-in-bulk.ts";
import { type AppContext, projectOf } from "./context.ts";
import { lastIdOf } from "./newest-first.ts";
import { once } from "./once.ts";
import { toTaskFilter } from "./task-filter.ts";
import { runAtOf } from "./task-settings.ts";
import { walkTime } from "./walk-time.ts";

/** What a call on many tasks asks for. */
interface BulkRequest {
  readonly filter?: TaskFilterMessage | undefined;
  readonly dryRun: boolean;
  readonly cursor: string;
  readonly limit?: number | undefined;
}

interface BulkAnswer {
  readonly matched: number;
  readonly changed: number;
  readonly nextCursor?: string;
}

/** Which tasks a call can be for. */
interface BulkKind {
  /** The list that its cursors are bound to. */
  readonly list: string;
  /** States that a filter may name. */
  readonly states: readonly TaskState[];
  /** States that a filter means which names none. */
  readonly otherwise: readonly TaskState[];
}

const OPEN: readonly TaskState[] = ["scheduled", "running", "retrying"];
const WAITING: readonly TaskState[] = ["scheduled", "retrying"];
const OVER: readonly TaskState[] = ["succeeded", "failed", "canceled", "expired"];
const CANCEL: BulkKind = { list: "bulk_cancel", states: OPEN, otherwise: OPEN };
const RESCHEDULE: BulkKind = { list: "bulk_reschedule", states: ["scheduled"], otherwise: ["scheduled"] };
const RUN: BulkKind = { list: "bulk_run", states: [...WAITING, ...OVER], otherwise: WAITING };

/** Most tasks that one call changes. */
const LIMIT = 1_000;

/** The calls that change many tasks, step by step. */
export function taskBulkHandlers(
  app: AppContext,
): Pick<ServiceImpl<typeof TaskService>, "cancelTasks" | "rescheduleTasks" | "runTasks"> {
  return {
    async cancelTasks(req, ctx) {
      const wanted = bulkOf(ctx, CANCEL, req);
      if (req.dryRun) return count(app.db, ctx, wanted.range);
      return once(app, ctx, CancelTasksResponseSchema, req, "", async (trx) =>
        wanted.answer(await cancelTasks(trx, wanted.range)),
      );
    },

    async rescheduleTasks(req, ctx) {
      const wanted = bulkOf(ctx, RESCHEDULE, req);
      if (req.dryRun) {
        moveOf(req, await taskMoment(app.db));
        return count(app.db, ctx, wanted.range);
      }
      const answer = await once(app, ctx, RescheduleTasksResponseSchema, req, "", async (trx) => {
        const moment = await taskMoment(trx);
        return wanted.answer(await rescheduleTasks(trx, wanted.range, moveOf(req, moment), moment.latest));
      });
      app.wakeups.wake("runs");
      return answer;
    },

    async runTasks(req, ctx) {
      const wanted = bulkOf(ctx, RUN, req);
      if (req.dryRun) return count(app.db, ctx, wanted.range);
      const answer = await once(app, ctx, RunTasksResponseSchema, req, "", async (trx) =>
        wanted.answer(await runTasks(trx, wanted.range)),
      );
      app.wakeups.wake("runs");
      return answer;
    },
  };
}

async function count(db: Db, ctx: HandlerContext, { projectId, filter, before }: BulkRange): Promise<BulkAnswer> {
  return { matched: await countTasks(db, projectId, filter, before, walkTime(ctx)), changed: 0 };
}

/** The tasks that a request means, and how it is answered. @throws Refusal FIELD_INVALID */
function bulkOf(
  ctx: HandlerContext,
  kind: BulkKind,
  { filter: given, cursor, limit = LIMIT }: BulkRequest,
): { readonly range: BulkRange; readonly answer: (step: BulkStep) => BulkAnswer } {
  const filter = filterOf(kind, given);
  const list = { list: kind.list, scope: JSON.stringify(filter), prefix: "task" } as const;
  return {
    range: { projectId: projectOf(ctx), filter, before: lastIdOf(list, cursor), limit },
    answer: ({ matched, changed, next }) => ({
      matched,
      changed,
      ...(next !== undefined && { nextCursor: formatCursor(list.list, list.scope, [formatId("task", next)]) }),
    }),
  };
}

function filterOf({ states, otherwise }: BulkKind, given: TaskFilterMessage | undefined): TaskFilter {
  const filter = given && toTaskFilter("filter.", given);
  // Two values of one label find nothing: no state does that too.
  if (given !== undefined && filter === undefined) return { states: [] };
  if (filter === undefined || Object.keys(filter).length === 0) {
    throw Refusal.field(
      "filter",
      "must say something, so that no call means all tasks by mistake; name a state to do so",
    );
  }
  const other = filter.states?.find((state) => !states.includes(state));
  if (other !== undefined) throw Refusal.field("filter.state", `must be one of ${states.join(", ")}`);
  return { ...filter, states: filter.states ?? otherwise };
}

/** Where tasks are moved to. @throws Refusal FIELD_INVALID */
function moveOf({ runAt, delaySeconds, shiftSeconds }: RescheduleTasksRequest, moment: TaskMoment): Move {
  if (shiftSeconds === undefined) return { runAt: runAtOf({ runAt, delaySeconds }, moment) };
  if (runAt !== undefined || delaySeconds !== undefined) {
    throw Refusal.field("shift_seconds", "cannot be given beside run_at or delay_seconds");
  }
  return { shiftSeconds };
}
