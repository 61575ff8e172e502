import { randomBytes } from "node:crypto";
import { sql } from "kysely";
import { inject } from "vitest";
import { connect } from "../../src/db/connect.ts";
import type { Db } from "../../src/db/schema.ts";

/** A database with nothing in it, on the server of the test run. It is dropped at the end. */
export async function emptyDatabase(): Promise<AsyncDisposable & { readonly db: Db; readonly url: string }> {
  const template = new URL(inject("databaseUrl"));
  const on = (name: string): string => {
    const url = new URL(template);
    url.pathname = `/${name}`;
    return url.href;
  };
  const name = `t_${randomBytes(8).toString("hex")}`;
  const admin = connect({ url: on("postgres"), poolSize: 1 });
  await sql.raw(`create database ${name}`).execute(admin);
  const db = connect({ url: on(name), poolSize: 2 });
  return {
    db,
    url: on(name),
    async [Symbol.asyncDispose]() {
      await db.destroy();
      await sql.raw(`drop database ${name} with (force)`).execute(admin);
      await admin.destroy();
    },
  };
}

/**
 * Breaks the connections of Carillon's nodes to this database: all of them, or those that listen for wake-ups. The
 * caller's own has another backend. Returns how many it broke.
 */
export async function breakConnections(db: Db, which: "all" | "wake-ups"): Promise<number> {
  const { rows } = await sql<{ broken: boolean }>`
    select pg_terminate_backend(pid) as broken from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
      and application_name = any(${which === "all" ? ["carillon", "carillon wake-ups"] : ["carillon wake-ups"]})`.execute(
    db,
  );
  return rows.filter(({ broken }) => broken).length;
}

/** How many connections to this database listen for wake-ups. */
export async function listening(db: Db): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    select count(*)::int as count from pg_stat_activity
    where datname = current_database() and application_name = 'carillon wake-ups' and state = 'idle'`.execute(db);
  return rows[0]?.count ?? 0;
}

/** The server processes that serve connections for wake-ups. */
export async function wakeUpPids(db: Db): Promise<number[]> {
  const { rows } = await sql<{ pid: number }>`
    select pid from pg_stat_activity where datname = current_database() and application_name = 'carillon wake-ups'`.execute(
    db,
  );
  return rows.map(({ pid }) => pid);
}

/** Whether the server's processes may get signals: those of a server that is not ours may live under other pids. */
export const isOwnServer = process.env["CARILLON_TEST_DATABASE_URL"] === undefined;

/** The payloads of all messages that are stored, in lines and outside, as JSON. */
export async function storedPayloads(db: Db): Promise<unknown[]> {
  const { rows } = await sql<{ payload: string }>`
    select convert_from(payload, 'utf8') as payload
    from (select payload from line_messages union all select payload from message_bodies) stored`.execute(db);
  return rows.map(({ payload }) => JSON.parse(payload));
}
