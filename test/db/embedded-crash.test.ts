import { readdir, readFile, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import pg from "pg";
import { describe, expect, test } from "vitest";
import { startEmbeddedPostgres } from "../../src/db/embedded.ts";
import { killHard, processesOf, query, spawnOwner, startOwner, temporaryDir, usedDataDir } from "./embedded-harness.ts";

/** The group that a terminal's Ctrl-C reaches: field 5 of proc_pid_stat(5). */
async function processGroup(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8");
  return Number(text.slice(text.lastIndexOf(")") + 2).split(" ")[2]);
}

async function entriesOf(dir: string): Promise<string[]> {
  return readdir(dir).catch(() => []);
}

describe.skipIf(process.platform !== "linux")("the embedded PostgreSQL, when Carillon is killed", () => {
  test("stops by itself within seconds", async () => {
    const dataDir = await usedDataDir();
    const { child } = await startOwner({ dataDir });
    const running = (await processesOf(dataDir)).filter((pid) => pid !== child.pid);
    expect(running.length).toBeGreaterThan(1);
    await killHard(child);
    await expect.poll(() => processesOf(dataDir)).toEqual([]);
  });

  test("can be started again at once, with every acknowledged row", async () => {
    const dataDir = await usedDataDir();
    const { child, said } = await startOwner({ dataDir });
    const client = new pg.Client(said.url);
    client.on("error", () => {});
    await client.connect();
    await client.query("create table kept (n int)");
    await client.query("insert into kept values (1)");
    await client.query("begin; insert into kept values (2)");
    await killHard(child);

    await using server = await startEmbeddedPostgres({ dataDir });
    expect(await query(server.url, "select n from kept")).toEqual([{ n: 1 }]);
  });

  test("can be started again when what should have stopped it was killed too", async () => {
    const dataDir = await usedDataDir();
    const { child, said } = await startOwner({ dataDir });
    await query(said.url, "create table kept as select 1 as n");
    for (const pid of await processesOf(dataDir)) {
      if ((await readFile(`/proc/${pid}/cmdline`, "utf8")).startsWith("/bin/sh")) process.kill(pid, "SIGKILL");
    }
    await killHard(child);

    await using server = await startEmbeddedPostgres({ dataDir });
    expect(await query(server.url, "select n from kept")).toEqual([{ n: 1 }]);
  });

  test("makes its cluster anew when the first one was only half made", async () => {
    const dataDir = await temporaryDir();
    const child = spawnOwner({ dataDir });
    await expect
      .poll(
        async () => {
          const scratch = (await entriesOf(dataDir)).find((name) => name.startsWith("pg-init-"));
          return scratch === undefined ? [] : entriesOf(join(dataDir, scratch, "cluster"));
        },
        { interval: 5 },
      )
      .toContain("PG_VERSION");
    await killHard(child);
    expect(await entriesOf(dataDir)).not.toContain("pg-cluster");

    await using server = await startEmbeddedPostgres({ dataDir });
    expect(await query(server.url, "select 1 as one")).toEqual([{ one: 1 }]);
    expect((await entriesOf(dataDir)).filter((name) => name.startsWith("pg-init-"))).toEqual([]);
  });

  test("shares no process group with Carillon, so Ctrl-C reaches Carillon alone", async () => {
    const dataDir = await usedDataDir();
    const { child } = await startOwner({ dataDir });
    const group = await processGroup(child.pid);
    const others = (await processesOf(dataDir)).filter((pid) => pid !== child.pid);
    for (const pid of others) expect(await processGroup(pid)).not.toBe(group);
  });
});

describe.skipIf(process.platform !== "linux")("a data directory in use", () => {
  test("is refused to another process by one line that names the pid, and stays in use", async () => {
    const dataDir = await usedDataDir();
    await using server = await startEmbeddedPostgres({ dataDir });
    const { said } = await startOwner({ dataDir });
    expect(said.error).toContain(`${dataDir} is in use by the Carillon with pid ${process.pid}`);
    expect(said.error).not.toContain("\n");
    expect(await query(server.url, "select 1 as one")).toEqual([{ one: 1 }]);
  });

  test("is refused to the same process", async () => {
    const dataDir = await usedDataDir();
    await using server = await startEmbeddedPostgres({ dataDir });
    await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow(`with pid ${process.pid} `);
    expect(await query(server.url, "select 1 as one")).toEqual([{ one: 1 }]);
  });

  test.each(["new", "left by a dead process"])(
    "goes to one of several that come at once, when it is %s",
    async (state) => {
      const dataDir = state === "new" ? await temporaryDir() : await usedDataDir();
      if (state !== "new") await killHard((await startOwner({ dataDir })).child);
      const owners = await Promise.all([1, 2, 3, 4].map(() => startOwner({ dataDir })));
      const winners = owners.filter(({ said }) => said.error === undefined);
      expect(winners).toHaveLength(1);
      for (const { said } of owners) {
        if (said.error !== undefined) expect(said.error).toContain(`is in use by the Carillon with pid`);
      }
      expect(await query(winners[0]?.said.url ?? "", "select 1 as one")).toEqual([{ one: 1 }]);
    },
  );

  test("is taken over when the pid in its lock has passed on to another process", async () => {
    const dataDir = await usedDataDir();
    const { child } = await startOwner({ dataDir });
    const lock = JSON.parse(await readFile(join(dataDir, "carillon.lock"), "utf8"));
    await killHard(child);
    const stranger = { ...lock, owner: { pid: process.pid, start: lock.owner.start } };
    await writeFile(join(dataDir, "carillon.lock"), JSON.stringify(stranger));
    await using server = await startEmbeddedPostgres({ dataDir });
    expect(await query(server.url, "select 1 as one")).toEqual([{ one: 1 }]);
  });

  test("is taken over when a power failure left its lock empty", async () => {
    const dataDir = await usedDataDir();
    await writeFile(join(dataDir, "carillon.lock"), "");
    await using server = await startEmbeddedPostgres({ dataDir });
    expect(await query(server.url, "select 1 as one")).toEqual([{ one: 1 }]);
  });

  test("is told by its heartbeat where pids say nothing, as between containers", async () => {
    const dataDir = await usedDataDir();
    const lockFile = join(dataDir, "carillon.lock");
    const elsewhere = { token: "t", owner: { pid: 1, start: "b/1" }, realm: "another-host pid:[1]" };
    await writeFile(lockFile, JSON.stringify(elsewhere));
    const beating = setInterval(() => void utimes(lockFile, new Date(), new Date()).catch(() => {}), 500);
    try {
      await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow("with pid 1 (another-host pid:[1])");
    } finally {
      clearInterval(beating);
    }
    await using server = await startEmbeddedPostgres({ dataDir });
    const { mtimeMs } = await stat(lockFile);
    await expect.poll(async () => (await stat(lockFile)).mtimeMs).not.toBe(mtimeMs);
    expect(await query(server.url, "select 1 as one")).toEqual([{ one: 1 }]);
  });
});
