import { sql } from "kysely";
import type { Db } from "../db/schema.ts";

/** What publishing by SQL is held to, as publishing through the API is by the settings. */
export interface PublishLimits {
  readonly maxPayloadBytes: number;
  readonly autoCreateQueues: boolean;
}

/** Writes the limits down for the SQL functions, where they differ from what is there. */
export async function setPublishLimits(db: Db, limits: PublishLimits): Promise<void> {
  const given = sql`(${limits.maxPayloadBytes}::int, ${limits.autoCreateQueues}::boolean)`;
  await sql`
    update publish_limits set (max_payload_bytes, auto_create_queues) = ${given}
    where (max_payload_bytes, auto_create_queues) <> ${given}`.execute(db);
}
