/** What a project's event webhooks can be told of, by type. The contract and docs/events.md say what `data` holds. */
export const EVENT_TYPES = {
  "cron.run.failed": "a run of a cron job has failed for good",
  "task.failed": "a task has failed for good",
  "task.expired": "a task could not start within its grace, and does not run",
  "message.dead_lettered": "a message has become a dead letter",
  "endpoint.attempts_spent": "50, 70, 90 or 100 % of the attempts of something sent to an endpoint have failed",
  "endpoint.breaker_opened": "so many requests to an endpoint failed that what is due waits",
  "endpoint.breaker_closed": "an endpoint gets its requests again",
  "endpoint.disabled": "a receiver wants no more requests, and gets none until somebody enables it",
  "cron.paused": "a cron job was paused because its runs failed",
  "cron.overdue": "a cron job has not started or not succeeded within its grace",
  "cron.recovered": "a cron job that was overdue is kept again",
  "push.group.parked": "a group of a FIFO queue is parked at a subscription",
  "webhook.test": "somebody asked for a test event",
} as const satisfies Record<string, string>;

export type EventType = keyof typeof EVENT_TYPES;

/** What an event is about, as it stands in `data`: public ids, RFC 3339 instants, snake_case. Undefined is left out. */
export type EventData = Readonly<Record<string, string | number | boolean | undefined>>;

/** The body of an event in the envelope of Standard Webhooks: type, timestamp, data. */
export function eventBody(type: EventType, at: Date, data: EventData): Buffer {
  return Buffer.from(JSON.stringify({ type, timestamp: at.toISOString(), data }));
}

/** Whether text is the name of a type, or `prefix.*` for one type or more that begin with `prefix.`. */
export function isEventFilter(filter: string): boolean {
  return Object.keys(EVENT_TYPES).some((type) => matchesEvent([filter], type));
}

/** Whether a webhook with these filters is told of events of the type. Without filters it is told of all. */
export function matchesEvent(filters: readonly string[], type: string): boolean {
  return (
    filters.length === 0 ||
    filters.some((filter) => filter === type || (filter.endsWith(".*") && type.startsWith(filter.slice(0, -1))))
  );
}

/**
 * Whether a webhook stands at the target that an event is about, so that it is not told: nobody hears there. Both are
 * normalised URLs; what is behind their paths does not count. What is no URL is nowhere.
 */
export function isAt(webhookUrl: string, about: string): boolean {
  const [webhook, target] = [URL.parse(webhookUrl), URL.parse(about)];
  return webhook !== null && webhook.origin === target?.origin && webhook.pathname === target.pathname;
}

/** Where a cron job or task goes: to a URL, or to the queue of that name. */
export interface EventTarget {
  readonly url: string | null;
  readonly queue?: string | null;
}

/** What events say of a target. */
export function targetData({ url, queue }: EventTarget): EventData {
  return { url: url ?? undefined, queue: queue ?? undefined };
}

/** A run that has failed for good, of a cron job or a task. */
export interface FailedRun {
  /** Public ids. */
  readonly runId: string;
  readonly ownerId: string;
  /** The name of the cron job or task. */
  readonly name: string;
  readonly target: EventTarget;
  readonly trigger: string;
  readonly scheduledAt: Date;
  readonly startedAt: Date;
  readonly finishedAt: Date;
  readonly error: string;
  /** Null when the newest attempt got no answer. */
  readonly responseStatus: number | null;
  /** How many attempts were made. */
  readonly attempts: number;
}

/** The data of `cron.run.failed` and `task.failed`. */
export function failedRunData(owner: "cron_id" | "task_id", run: FailedRun): EventData {
  return {
    run_id: run.runId,
    [owner]: run.ownerId,
    name: run.name,
    ...targetData(run.target),
    state: "failed",
    trigger: run.trigger,
    scheduled_at: run.scheduledAt.toISOString(),
    started_at: run.startedAt.toISOString(),
    finished_at: run.finishedAt.toISOString(),
    attempts: run.attempts,
    error: run.error,
    response_status: run.responseStatus ?? undefined,
  };
}

/** A task that could not start in time. Ids are public ones. */
export interface ExpiredTask {
  readonly taskId: string;
  readonly runId: string;
  readonly name: string;
  readonly url: string;
  readonly scheduledAt: Date;
  readonly graceSeconds: number;
  readonly expiredAt: Date;
}

/** The data of `task.expired`. */
export function expiredTaskData(task: ExpiredTask): EventData {
  return {
    task_id: task.taskId,
    run_id: task.runId,
    name: task.name,
    url: task.url,
    state: "expired",
    scheduled_at: task.scheduledAt.toISOString(),
    grace_seconds: task.graceSeconds,
    expired_at: task.expiredAt.toISOString(),
  };
}
