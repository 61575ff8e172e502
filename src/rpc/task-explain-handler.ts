import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { type TaskService, TaskWait } from "../../gen/scheduling/v1/task_service_pb.js";
import type { Db } from "../db/schema.ts";
import { explainTask } from "../domain/explain-task.ts";
import { formatId } from "../domain/ids.ts";
import { controlOf, findEndpoint } from "../store/endpoints.ts";
import { findTask, taskMoment } from "../store/tasks.ts";
import { type AppContext, projectOf } from "./context.ts";
import { toTaskState } from "./convert-task.ts";
import { requireTask } from "./find-task.ts";

const WAITS = {
  over: TaskWait.OVER,
  attempt: TaskWait.ATTEMPT,
  lost_attempt: TaskWait.LOST_ATTEMPT,
  time: TaskWait.TIME,
  retry: TaskWait.RETRY,
  endpoint_disabled: TaskWait.ENDPOINT_DISABLED,
  endpoint_failing: TaskWait.ENDPOINT_FAILING,
  endpoint_paused: TaskWait.ENDPOINT_PAUSED,
  endpoint_full: TaskWait.ENDPOINT_FULL,
  endpoint_rate: TaskWait.ENDPOINT_RATE,
  endpoint_turn: TaskWait.ENDPOINT_TURN,
  node: TaskWait.NODE,
} as const;

const LIVE: readonly string[] = ["pending", "running", "retrying"];

/** The call that says why a task has not run yet. */
export function taskExplainHandler(app: AppContext): Pick<ServiceImpl<typeof TaskService>, "explainTask"> {
  return {
    async explainTask(req, ctx) {
      const { task, lastRun, endpoint, now } = await readTask(app.db, ctx, req.taskId);
      const live = LIVE.includes(lastRun.state);
      const answer = explainTask({
        now,
        state: task.state,
        run: {
          live,
          leaseExpiresAt: lastRun.lease_expires_at,
          runAt: lastRun.run_at,
          startBy: lastRun.start_by,
          attempt: lastRun.attempt,
          error: lastRun.error,
          parked: lastRun.parked,
        },
        endpoint: endpoint && { ...controlOf(endpoint), reason: endpoint.reason, inFlight: endpoint.in_flight },
      });
      const mayExpire = live && lastRun.attempt === 0 && lastRun.start_by !== null;
      return {
        taskId: req.taskId,
        state: toTaskState(task.state),
        waitingFor: WAITS[answer.waitingFor],
        explanation: answer.explanation,
        ...(answer.until !== undefined && { until: timestampFromDate(answer.until) }),
        ...(mayExpire && lastRun.start_by !== null && { expiresAt: timestampFromDate(lastRun.start_by) }),
        ...(endpoint !== undefined && { endpointId: formatId("ep", endpoint.endpoint_id) }),
        endpointWaiting: endpoint?.waiting ?? 0,
        endpointInFlight: endpoint?.in_flight ?? 0,
      };
    },
  };
}

/** The task with all that it may wait for, as they are at one instant. @throws Refusal TASK_NOT_FOUND */
async function readTask(db: Db, ctx: HandlerContext, id: string) {
  const snapshot = db.transaction().setIsolationLevel("repeatable read").setAccessMode("read only");
  return snapshot.execute(async (trx) => {
    const { task, lastRun } = await requireTask(trx, ctx, id, findTask);
    if (lastRun === undefined) throw new Error("a task has no run");
    const endpointId = lastRun.endpoint_id;
    const endpoint = endpointId === null ? undefined : await findEndpoint(trx, projectOf(ctx), endpointId);
    return { task, lastRun, endpoint, now: (await taskMoment(trx)).now };
  });
}
