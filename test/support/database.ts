import { randomBytes } from "node:crypto";
import { sql } from "kysely";
import { inject } from "vitest";
import { connect } from "../../src/db/connect.ts";
import type { Db } from "../../src/db/schema.ts";

export interface TestDatabase extends AsyncDisposable {
  readonly db: Db;
  readonly url: string;
  /** Moves the service's clock forward. */
  advanceClock(seconds: number): Promise<void>;
  /** The service's clock now. */
  now(): Promise<Date>;
}

/** A database of its own, cloned from the migrated template. It is dropped at the end. */
export async function testDatabase(): Promise<TestDatabase> {
  const templateUrl = inject("databaseUrl");
  const template = /\/([^/?]+)(\?|$)/.exec(templateUrl)?.[1] ?? "";
  const name = `t_${randomBytes(8).toString("hex")}`;
  const admin = connect({ url: databaseUrl(templateUrl, "postgres"), poolSize: 1 });
  await sql.raw(`create database ${name} template ${template}`).execute(admin);

  const url = databaseUrl(templateUrl, name);
  const db = connect({ url });
  return {
    db,
    url,
    async advanceClock(seconds) {
      await sql`update test_clock set offset_by = offset_by + make_interval(secs => ${seconds})`.execute(db);
    },
    async now() {
      const { rows } = await sql<{ now: Date }>`select carillon_now() as now`.execute(db);
      if (rows[0] === undefined) throw new Error("no clock");
      return rows[0].now;
    },
    async [Symbol.asyncDispose]() {
      await db.destroy();
      await sql.raw(`drop database ${name} with (force)`).execute(admin);
      await admin.destroy();
    },
  };
}

function databaseUrl(url: string, database: string): string {
  return url.replace(/^(postgres(?:ql)?:\/\/[^/]*\/)[^?]*/, `$1${database}`);
}
