import type { CreateCronJobRequest, UpdateCronJobRequest } from "../../gen/scheduling/v1/cron_service_pb.js";
import { Refusal } from "../errors.ts";
import type { SchedulePolicies } from "./cron-policies.ts";

/** Within how many seconds a run has to have succeeded, of a monitor about which nobody says anything. */
const DEFAULT_GRACE_SECONDS = 300;

/** What a job sends, and when and how often. A monitor sends nothing. */
const ABOUT_SENDING = [
  ["url", "url"],
  ["queue", "queue"],
  ["group_id", "groupId"],
  ["priority", "priority"],
  ["ttl_seconds", "ttlSeconds"],
  ["payload", "payload"],
  ["content_type", "contentType"],
  ["headers", "headers"],
  ["retries", "retries"],
  ["retry_policy", "retryPolicy"],
  ["timeout_seconds", "timeoutSeconds"],
  ["overlap_policy", "overlapPolicy"],
  ["misfire_policy", "misfirePolicy"],
  ["misfire_window_seconds", "misfireWindowSeconds"],
  ["spread_seconds", "spreadSeconds"],
  ["jitter_seconds", "jitterSeconds"],
  ["expire_after_seconds", "expireAfterSeconds"],
  ["pause_after_failures", "pauseAfterFailures"],
] as const;

/**
 * Refuses what a request says about sending, for a monitor. `written` are the fields that an update writes; a new job has all
 * that are set.
 *
 * @throws Refusal FIELD_INVALID
 */
export function refuseSending(req: CreateCronJobRequest | UpdateCronJobRequest, written?: ReadonlySet<string>): void {
  for (const [field, name] of ABOUT_SENDING) {
    if (written === undefined ? isSet(req[name]) : written.has(field)) {
      throw Refusal.field(field, "is about what a job sends, and a monitor sends nothing");
    }
  }
}

function isSet(value: unknown): boolean {
  if (typeof value === "object" && value !== null && !(value instanceof Uint8Array))
    return Object.keys(value).length > 0;
  return value !== undefined && value !== "" && value !== 0;
}

/** The policies of a monitor: it always says when somebody has to have pinged, so that a fire without a ping has an end. */
export function monitorPolicies(policies: SchedulePolicies): SchedulePolicies {
  if (policies.start_grace_seconds !== null || policies.finish_grace_seconds !== null) return policies;
  return { ...policies, finish_grace_seconds: DEFAULT_GRACE_SECONDS };
}
