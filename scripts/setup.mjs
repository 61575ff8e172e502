/**
 * Makes a fresh clone ready: installs the dependencies when `node_modules` is missing or does not match
 * `package-lock.json`, and says nothing when there is nothing to do. With `--omit-dev` what only development needs is
 * left out, unless some of it is there already.
 *
 * It runs before anything is installed, under whatever Node the machine has (18 or newer), so it is plain JavaScript
 * with no dependency. What follows it in package.json runs on the Node that the installation brings, which npm puts
 * first on the PATH. (`env node` there makes the shell look again: it remembers where it found the first `node`.)
 */
import { spawn, spawnSync } from "node:child_process";
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const OLDEST_NODE = [22, 19];
/** A slow network may need minutes; more than this is a hung installation. */
const INSTALL_TIMEOUT_MS = 10 * 60_000;
const LOCK_POLL_MS = 200;
/** A lock that names no owner is just being made, or its owner died while making it. */
const UNOWNED_LOCK_GRACE_MS = 10_000;
const EXCERPT_LINES = 12;

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const packagedNode = join(root, "node_modules", ".bin", "node");
const lockDirectory = join(root, ".setup-lock");
const lockOwners = join(lockDirectory, "pids");

if (firstMismatch() !== undefined) {
  await takeLock();
  process.once("exit", () => rmSync(lockDirectory, { recursive: true, force: true }));
  // Another setup may have done the work while this one waited.
  if (firstMismatch() !== undefined) await install();
}
if (!existsSync(packagedNode) && !isSupported(process.versions.node)) {
  fail(
    `no suitable Node: this one is ${process.versions.node}, ${OLDEST_NODE.join(".")} or newer is needed, ` +
      `and there is no packaged one for ${process.platform}-${process.arch}`,
  );
}

/** The path of the first package in which `node_modules` differs from the lock file; undefined where none does. */
function firstMismatch() {
  const wanted = readPackages("package-lock.json");
  const installed = installedPackages() ?? {};
  const leaveOutDev = omitsDev();
  return Object.keys(wanted).find((path) => {
    const { version, integrity, optional, dev, os, cpu, libc } = wanted[path];
    if (path === "") return false;
    const here = installed[path];
    if (here !== undefined) return here.version !== version || here.integrity !== integrity;
    if (dev && leaveOutDev) return false;
    // An optional package for any machine is one that may fail to install; one for this machine has to be there.
    const isForThisMachine = fits(os, process.platform) && fits(cpu, process.arch) && libc === undefined;
    return !optional || (isForThisMachine && (os !== undefined || cpu !== undefined));
  });
}

/** npm's own record of what it installed. npm writes it last, so an interrupted installation has none. */
function installedPackages() {
  return existsSync(join(root, "node_modules", ".package-lock.json"))
    ? readPackages("node_modules/.package-lock.json")
    : undefined;
}

function readPackages(file) {
  return JSON.parse(readFileSync(join(root, file), "utf8")).packages;
}

function omitsDev() {
  const hasDev = Object.values(installedPackages() ?? {}).some(({ dev }) => dev);
  return process.argv.includes("--omit-dev") && !hasDev;
}

/** Whether an `os` or `cpu` field, which is absent, a text or a list, allows the value. */
function fits(allowed, value) {
  return allowed === undefined || [allowed].flat().includes(value);
}

async function install() {
  const startedAt = Date.now();
  say("installing dependencies; the first time takes a moment");
  const { code, output } = await runNpm();
  if (code !== 0) {
    process.stderr.write(`${excerpt(output)}\n`);
    fail(`npm failed (${code}) after ${secondsSince(startedAt)} s; its output is above`);
  }
  uncoverOwnNode();
  const missing = firstMismatch();
  const exception = missing === undefined ? "" : `, without the optional ${missing}`;
  say(`installed in ${secondsSince(startedAt)} s${exception}`);
}

/** Runs npm with scripts off. Resolves with its exit code (or the signal's name) and all that it printed. */
function runNpm() {
  // `npm ci` empties node_modules first, and a server that runs out of it would lose its files. So it is only for
  // a folder that is missing or half-filled; otherwise npm changes what differs.
  const command = installedPackages() === undefined ? ["ci"] : ["install", "--no-save"];
  const quiet = ["--no-audit", "--no-fund", "--no-progress", "--loglevel=error"];
  const cache = hasNpmCache() ? [] : [`--cache=${join(lockDirectory, "npm-cache")}`];
  const args = [...command, "--ignore-scripts", ...quiet, ...cache, ...(omitsDev() ? ["--omit=dev"] : [])];
  // Under npm, these name the npm and the Node that called: not the Node in node_modules, which `npm ci` deletes.
  const { npm_execpath: npm, npm_node_execpath: node = process.execPath } = process.env;
  const options = { cwd: root, stdio: ["ignore", "pipe", "pipe"], timeout: INSTALL_TIMEOUT_MS };
  const child = npm === undefined ? spawn("npm", args, options) : spawn(node, [npm, ...args], options);
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text) => {
      output += text;
    });
  }
  // Where this process is killed npm goes on writing, so the lock outlives it as long as npm does.
  if (child.pid !== undefined) writeOwners(child.pid);
  // npm is slow to obey the gentler signals, and what it leaves half-done the next setup does again.
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => child.kill("SIGKILL"));
  return new Promise((resolve) => {
    child.once("error", (error) => resolve({ code: error.message, output }));
    child.once("close", (code, signal) => resolve({ code: code ?? signal, output }));
  });
}

/** Whether npm can keep its cache where it wants to. Service accounts and containers may have no home to write to. */
function hasNpmCache() {
  let place = process.env.npm_config_cache ?? join(homedir(), ".npm");
  while (!existsSync(place) && place !== dirname(place)) place = dirname(place);
  try {
    accessSync(place, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** Both ends of a long output: npm says what is wrong first and where its log is last. */
function excerpt(output) {
  const lines = output.trimEnd().split("\n");
  if (lines.length <= 2 * EXCERPT_LINES) return lines.join("\n");
  return [...lines.slice(0, EXCERPT_LINES), "...", ...lines.slice(-EXCERPT_LINES)].join("\n");
}

/** Where the packaged Node cannot run (it needs glibc) and this one will do, removes the former from the PATH. */
function uncoverOwnNode() {
  if (!existsSync(packagedNode) || spawnSync(packagedNode, ["--version"], { timeout: 30_000 }).status === 0) return;
  if (isSupported(process.versions.node)) rmSync(packagedNode);
  else fail(`the packaged Node does not run here, and this one is ${process.versions.node}: install Node 24`);
}

function isSupported(version) {
  const [major, minor] = version.split(".").map(Number);
  return major > OLDEST_NODE[0] || (major === OLDEST_NODE[0] && minor >= OLDEST_NODE[1]);
}

/** Waits until this process owns the lock directory. */
async function takeLock() {
  const giveUpAt = Date.now() + INSTALL_TIMEOUT_MS;
  let hasSaidSo = false;
  while (!tryLock()) {
    if (Date.now() > giveUpAt) fail(`another setup holds ${lockDirectory}; delete it if none is running`);
    if (!hasSaidSo) say("waiting for another setup of this folder");
    hasSaidSo = true;
    await new Promise((resolve) => setTimeout(resolve, LOCK_POLL_MS));
  }
}

/** True when the lock is this process's now: it was free, or its owners are dead. */
function tryLock() {
  try {
    mkdirSync(lockDirectory);
    writeOwners();
    return true;
  } catch (error) {
    if (error.code !== "EEXIST") throw error;
  }
  try {
    const owners = readOwners();
    if (owners.some(isAlive)) return false;
    // Of all that see the same dead owners, the one that makes this folder inherits.
    mkdirSync(join(lockDirectory, `heir-of-${owners.join("-")}`));
    writeOwners();
    return true;
  } catch (error) {
    if (error.code === "EEXIST" || error.code === "ENOENT") return false;
    throw error;
  }
}

/** The pids in the lock. Where there are none: an empty list, or this process's own while some may still come. */
function readOwners() {
  if (existsSync(lockOwners)) return readFileSync(lockOwners, "utf8").split(" ").map(Number);
  return Date.now() - statSync(lockDirectory).mtimeMs > UNOWNED_LOCK_GRACE_MS ? [] : [process.pid];
}

/** Writes this process and the one that it waits for, if any, into the lock, at once. */
function writeOwners(...others) {
  const draft = `${lockOwners}-${process.pid}`;
  writeFileSync(draft, [process.pid, ...others].join(" "));
  renameSync(draft, lockOwners);
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}

function secondsSince(startedAt) {
  return ((Date.now() - startedAt) / 1000).toFixed(1);
}

function say(line) {
  process.stderr.write(`carillon: ${line}\n`);
}

function fail(line) {
  say(line);
  process.exit(1);
}
