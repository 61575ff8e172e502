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
};
