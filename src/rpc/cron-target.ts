import type { HandlerContext } from "@connectrpc/connect";
import {
  type CreateCronJobRequest,
  TaskType,
  type UpdateCronJobRequest,
} from "../../gen/scheduling/v1/cron_service_pb.js";
import type { CronJobRow, Db } from "../db/schema.ts";
import { queueTopic } from "../db/wakeups.ts";
import { isCredential } from "../domain/credentials.ts";
import { Refusal } from "../errors.ts";
import { isMonitor } from "../store/monitors.ts";
import { checkTarget } from "../webhook/target.ts";
import { type AppContext, projectOf } from "./context.ts";
import { ensureQueue } from "./find-queue.ts";
import { warnOfPriority } from "./publishing.ts";

/** Where a cron job goes, to a URL or to a queue, and what its messages have. */
export type CronTarget = Pick<CronJobRow, "url" | "queue" | "group_id" | "priority" | "ttl_seconds">;

const MAX_NAME_LENGTH = 256;
/** What only messages have. */
const OF_MESSAGES = ["group_id", "priority", "ttl_seconds"] as const;
const NO_MESSAGE = { group_id: null, priority: null, ttl_seconds: null } as const;
/** A monitor sends nothing. */
const NO_TARGET = { url: null, queue: null, ...NO_MESSAGE } as const;

/** The target that a request gives. @throws Refusal TARGET_REFUSED, FIELD_INVALID */
export function newTarget(app: AppContext, req: CreateCronJobRequest): CronTarget {
  if (req.taskType === TaskType.MONITOR) return NO_TARGET;
  if (req.url !== "" && req.queue !== "") throw onlyOne();
  const place = req.queue === "" ? urlPlace(app, req.url) : { url: null, queue: req.queue };
  const target = { ...place, ...messageOf(req) };
  checkMessage(target);
  checkType(req.taskType, target);
  checkHeaderNames(target, req.headers);
  return target;
}

/**
 * The target of a job after an update that writes the `written` fields: one that is given takes the place of the other.
 *
 * @throws Refusal TARGET_REFUSED, FIELD_INVALID
 */
export function updatedTarget(
  app: AppContext,
  req: UpdateCronJobRequest,
  written: ReadonlySet<string>,
  job: CronJobRow,
): CronTarget {
  if (isMonitor(job)) {
    if (written.has("task_type") && req.taskType !== TaskType.MONITOR)
      throw Refusal.field("task_type", "must be monitor: a monitor stays one");
    return NO_TARGET;
  }
  const place = updatedPlace(app, req, written, job);
  const kept = place.queue === null ? NO_MESSAGE : job;
  const given = messageOf(req);
  const pick = <Name extends keyof typeof given>(name: Name) => (written.has(name) ? given[name] : kept[name]);
  const message = { group_id: pick("group_id"), priority: pick("priority"), ttl_seconds: pick("ttl_seconds") };
  const target = { ...place, ...message };
  checkMessage(target);
  if (written.has("task_type")) checkType(req.taskType ?? TaskType.UNSPECIFIED, target);
  checkHeaderNames(target, written.has("headers") ? req.headers : job.headers);
  return target;
}

type Place = Pick<CronTarget, "url" | "queue">;

function updatedPlace(
  app: AppContext,
  req: UpdateCronJobRequest,
  written: ReadonlySet<string>,
  job: CronJobRow,
): Place {
  const url = written.has("url") ? (req.url ?? "") : undefined;
  const queue = written.has("queue") ? (req.queue ?? "") : undefined;
  if (url && queue) throw onlyOne();
  if (queue) return { url: null, queue };
  if (url) return urlPlace(app, url);
  if (url === "" && job.url !== null) throw Refusal.field("url", "cannot be cleared, unless queue is given");
  if (queue === "" && job.queue !== null) throw Refusal.field("queue", "cannot be cleared, unless url is given");
  return { url: job.url, queue: job.queue };
}

function urlPlace(app: AppContext, url: string): Place {
  return { url: checkTarget("url", url, app.targets), queue: null };
}

function messageOf(
  req: Pick<UpdateCronJobRequest, "groupId" | "priority" | "ttlSeconds">,
): Omit<CronTarget, keyof Place> {
  return { group_id: req.groupId || null, priority: req.priority ?? null, ttl_seconds: req.ttlSeconds ?? null };
}

/** The name of a job that nobody gave one: host and path of its URL, or its queue; of a monitor a word. */
export function nameOf({ url, queue }: Place): string {
  if (url === null) return queue ?? "monitor";
  const { host, pathname } = new URL(url);
  return `${host}${pathname === "/" ? "" : pathname}`.slice(0, MAX_NAME_LENGTH);
}

/**
 * Sees to it that the queue of a target is there, where it has one: it is created when there is none and the operator allows
 * it.
 *
 * @throws Refusal QUEUE_NOT_FOUND
 */
export async function ensureTarget(
  app: AppContext,
  trx: Db,
  ctx: HandlerContext,
  { queue, priority }: Pick<CronTarget, "queue" | "priority">,
): Promise<void> {
  if (queue === null) return;
  warnOfPriority(ctx, await ensureQueue(app, trx, ctx, queue), [{ priority: priority ?? 0 }]);
}

/** Wakes whoever waits for what a run of the job has put on its way. */
export function wakeTarget(app: AppContext, ctx: HandlerContext, queue: string | null): void {
  app.wakeups.wake("runs");
  if (queue === null) return;
  app.wakeups.wake(queueTopic(projectOf(ctx), queue));
  app.wakeups.wake("pushes");
}

function onlyOne(): Refusal {
  return Refusal.field("queue", "cannot come together with url: a cron job has one target");
}

function checkMessage(target: CronTarget): void {
  if (target.queue !== null) return;
  for (const field of OF_MESSAGES) {
    if (target[field] !== null) throw Refusal.field(field, "is for messages: it can only come with queue");
  }
}

function checkType(type: TaskType, { queue }: CronTarget): void {
  if (type === TaskType.MONITOR) throw Refusal.field("task_type", "cannot become monitor: what has a target is none");
  if (type === TaskType.UNSPECIFIED || (type === TaskType.QUEUE) === (queue !== null)) return;
  throw Refusal.field(
    "task_type",
    queue === null ? "must be http_url, as the target is a url" : "must be queue, as the target is one",
  );
}

/** Headers of messages are shown to whoever consumes them, and stored as they are. */
function checkHeaderNames({ queue }: CronTarget, headers: Readonly<Record<string, string>>): void {
  const name = queue === null ? undefined : Object.keys(headers).find((header) => isCredential(header.toLowerCase()));
  if (name === undefined) return;
  const rule = "carries credentials, which messages would show to whoever consumes them";
  throw Refusal.field(`headers[${JSON.stringify(name)}]`, rule);
}
