import type { Migration } from "kysely/migration";
import { up as initial } from "./0001-initial.ts";
import { up as line } from "./0002-line.ts";
import { up as deadLetters } from "./0003-dead-letters.ts";
import { up as groups } from "./0004-groups.ts";
import { up as groupsHandOut } from "./0004-groups-hand-out.ts";
import { up as groupsUpkeep } from "./0004-groups-upkeep.ts";
import { up as publishing } from "./0005-publishing.ts";
import { up as publishingFunctions } from "./0005-publishing-functions.ts";
import { up as queueHistory } from "./0005-queue-history.ts";
import { up as lineRanges } from "./0006-line-ranges.ts";
import { up as groupHandOut } from "./0007-group-hand-out.ts";
import { up as groupUpkeep } from "./0007-group-upkeep.ts";
import { up as groupVersions } from "./0007-group-versions.ts";
import { up as limits } from "./0007-limits.ts";
import { up as endpoints } from "./0008-endpoints.ts";
import { up as push } from "./0009-push.ts";
import { up as pushDeliveries } from "./0009-push-deliveries.ts";
import { up as deliveries } from "./0010-deliveries.ts";
import { up as events } from "./0010-events.ts";
import { up as retries } from "./0010-retries.ts";
import { up as signingKeys } from "./0011-signing-keys.ts";
import { up as schedules } from "./0012-schedules.ts";
import { up as ledger } from "./0012-schedules-ledger.ts";
import { up as schedulePolicies } from "./0012-schedules-policies.ts";
import { up as backfills } from "./0012-schedules-rest.ts";
import { up as watches } from "./0013-watches.ts";
import { up as tasks } from "./0014-tasks.ts";
import { up as taskKeys } from "./0014-tasks-keys.ts";
import { up as targets } from "./0015-targets.ts";
import { up as monitors } from "./0016-monitors.ts";
import { up as droppedSubscriptions } from "./0019-dropped-subscriptions.ts";
import { up as lapsedLeases } from "./0021-lapsed-leases.ts";
import { up as attemptsUnderWay } from "./0022-attempts-under-way.ts";
import { up as duePlaces } from "./0023-due-places.ts";

/** Every migration by name, in order. A static list, so that bundling cannot lose one. */
export const MIGRATIONS: Record<string, Migration> = {
  "0001-initial": { up: initial },
  "0002-line": { up: line },
  "0003-dead-letters": { up: deadLetters },
  "0004-groups": { up: groups },
  "0004-groups-hand-out": { up: groupsHandOut },
  "0004-groups-upkeep": { up: groupsUpkeep },
  "0005-publishing": { up: publishing },
  "0005-publishing-functions": { up: publishingFunctions },
  "0005-queue-history": { up: queueHistory },
  "0006-line-ranges": { up: lineRanges },
  "0007-group-versions": { up: groupVersions },
  "0007-group-versions-hand-out": { up: groupHandOut },
  "0007-group-versions-upkeep": { up: groupUpkeep },
  "0007-limits": { up: limits },
  "0008-endpoints": { up: endpoints },
  "0009-push": { up: push },
  "0009-push-deliveries": { up: pushDeliveries },
  "0010-deliveries": { up: deliveries },
  "0010-events": { up: events },
  "0010-retries": { up: retries },
  "0011-signing-keys": { up: signingKeys },
  "0012-schedules": { up: schedules },
  "0012-schedules-ledger": { up: ledger },
  "0012-schedules-policies": { up: schedulePolicies },
  "0012-schedules-rest": { up: backfills },
  "0013-watches": { up: watches },
  "0014-tasks": { up: tasks },
  "0014-tasks-keys": { up: taskKeys },
  "0015-targets": { up: targets },
  "0016-monitors": { up: monitors },
  "0019-dropped-subscriptions": { up: droppedSubscriptions },
  "0021-lapsed-leases": { up: lapsedLeases },
  "0022-attempts-under-way": { up: attemptsUnderWay },
  "0023-due-places": { up: duePlaces },
};
