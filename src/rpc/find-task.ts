import type { HandlerContext } from "@connectrpc/connect";
import type { Db } from "../db/schema.ts";
import { parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import type { findTask, TaskView } from "../store/tasks.ts";
import { projectOf } from "./context.ts";

/** The caller's task, read by `read`. @throws Refusal TASK_NOT_FOUND */
export async function requireTask(db: Db, ctx: HandlerContext, id: string, read: typeof findTask): Promise<TaskView> {
  const taskId = parseId("task", id);
  const view = taskId === undefined ? undefined : await read(db, projectOf(ctx), taskId);
  if (view === undefined) throw new Refusal("TASK_NOT_FOUND", { task_id: id });
  return view;
}
