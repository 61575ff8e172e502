import { sql } from "kysely";
import type { Db } from "../db/schema.ts";

/** Forgets up to `limit` deduplication keys whose window has passed and returns how many. */
export async function pruneDeduplicationKeys(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from deduplication_keys where ctid = any(array(
      select ctid from deduplication_keys where expires_at <= carillon_now() limit ${limit} for update skip locked))`.execute(
    db,
  );
  return Number(numAffectedRows ?? 0n);
}
