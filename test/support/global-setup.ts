import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sql } from "kysely";
import type { TestProject } from "vitest/node";
import { connect } from "../../src/db/connect.ts";
import { startEmbeddedPostgres } from "../../src/db/embedded.ts";
import { migrate } from "../../src/db/migrate.ts";

declare module "vitest" {
  interface ProvidedContext {
    /** The migrated template, on a server that every test file may create databases on. */
    databaseUrl: string;
  }
}

/** A server that the projects of one run share, and how many of them still need it. */
interface SharedServer {
  readonly url: string;
  users: number;
  stop(): Promise<void>;
}

// Vitest loads this file once for each project, all in one process.
const shared = globalThis as { carillonTestServer?: Promise<SharedServer> | undefined };

/**
 * Gives each project of the test run a migrated database to clone, on one PostgreSQL for them all.
 * CARILLON_TEST_DATABASE_URL names a server to use instead of the embedded one.
 *
 * In the template the service's clock can be moved: carillon_now() adds the offset that the table test_clock holds.
 */
export default async function setup(project: TestProject) {
  shared.carillonTestServer ??= startServer();
  const server = await shared.carillonTestServer;
  server.users++;

  const template = `carillon_template_${process.pid}_${project.name}`;
  await inDatabase(server.url, `create database ${template}`);
  const url = withDatabase(server.url, template);
  const db = connect({ url });
  await migrate(db);
  await sql`create table test_clock (offset_by interval not null)`.execute(db);
  await sql`insert into test_clock values ('0')`.execute(db);
  // Called for each row by functions that switch sequential scans off, which before PostgreSQL 18 makes the look at
  // test_clock seem so costly that each call would be compiled first.
  await sql
    .raw(
      `create or replace function carillon_now() returns timestamptz language sql stable parallel safe set jit = off as $$
         select now() + offset_by from test_clock $$`,
    )
    .execute(db);
  await db.destroy();
  project.provide("databaseUrl", url);

  return async () => {
    await inDatabase(server.url, `drop database ${template} with (force)`);
    server.users--;
    if (server.users > 0) return;
    shared.carillonTestServer = undefined;
    await server.stop();
  };
}

async function startServer(): Promise<SharedServer> {
  const given = process.env["CARILLON_TEST_DATABASE_URL"];
  if (given !== undefined) return { url: given, users: 0, stop: async () => {} };
  const dataDir = await mkdtemp(join(tmpdir(), "carillon-test-"));
  // As root PostgreSQL runs as another user, who has to pass this directory.
  await chmod(dataDir, 0o711);
  const server = await startEmbeddedPostgres({
    dataDir: join(dataDir, "pg"),
    settings: { max_connections: "300", fsync: "off" },
  });
  return {
    url: server.url,
    users: 0,
    async stop() {
      await server[Symbol.asyncDispose]();
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}

async function inDatabase(url: string, statement: string): Promise<void> {
  const db = connect({ url });
  await sql.raw(statement).execute(db);
  await db.destroy();
}

/** The same server's URL with another database. */
function withDatabase(url: string, database: string): string {
  return url.replace(/^(postgres(?:ql)?:\/\/[^/]*\/)[^?]*/, `$1${database}`);
}
