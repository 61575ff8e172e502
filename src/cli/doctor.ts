import { getServers } from "node:dns";
import { access, constants, stat, statfs } from "node:fs/promises";
import { createServer } from "node:net";
import { styleText } from "node:util";
import { type Config, dataHome } from "../config.ts";
import { defaultDataDir } from "../db/embedded-places.ts";
import type { Db } from "../db/schema.ts";
import { durabilityOf, pendingMigrations, readServerState, type ServerState } from "../db/server-state.ts";
import { virtualClockAt } from "../db/virtual-clock.ts";
import { missingVaultKeys } from "../store/sealed-values.ts";
import { checkTarget, parseAllowList, type TargetPolicy } from "../webhook/target.ts";
import { failureText } from "./failure.ts";
import { loadCheckedConfig } from "./load-config.ts";
import { type OpenDatabase, openDatabase } from "./open-database.ts";

type Verdict = "ok" | "warn" | "fail";

/** One line of the report. `detail` says what was found and, unless it is well, what to do. */
interface Finding {
  readonly check: string;
  readonly verdict: Verdict;
  readonly detail: string;
}

/** Clock differences in milliseconds. Timers and signatures bear the first; receivers refuse signatures 300 s off. */
const CLOCK_WARN_MS = 2_000;
const CLOCK_FAIL_MS = 240_000;
/** Free space below which the data directory is called short, in bytes. */
const SPACE_WARN = 1_073_741_824;

/** `carillon doctor`: checks what a server needs, prints a line for each, and fails (1) when something is broken. */
export async function doctor(): Promise<number> {
  const config = loadCheckedConfig("tool");
  const findings: Finding[] = [];
  const report = (check: string, verdict: Verdict, detail: string): void => {
    findings.push({ check, verdict, detail });
    console.log(formatFinding({ check, verdict, detail }, process.stdout.isTTY));
  };

  if (config.warnings.length === 0) report("settings", "ok", "all can be used");
  for (const warning of config.warnings) report("settings", "warn", warning);
  await checkDatabase(report);
  await checkDataDir(config, report);
  await checkPort(config, report);
  checkEgress(config, report);

  const failed = findings.filter(({ verdict }) => verdict === "fail").length;
  const warned = findings.filter(({ verdict }) => verdict === "warn").length;
  console.log(failed > 0 ? `${failed} failed, ${warned} to look at` : warned > 0 ? `${warned} to look at` : "all well");
  return failed > 0 ? 1 : 0;
}

type Report = (check: string, verdict: Verdict, detail: string) => void;

function formatFinding({ check, verdict, detail }: Finding, colored: boolean): string {
  const color = { ok: "green", warn: "yellow", fail: "red" } as const;
  const label = verdict.padEnd(4);
  return `${colored ? styleText(color[verdict], label) : label}  ${check.padEnd(10)}  ${detail}`;
}

async function checkDatabase(report: Report): Promise<void> {
  try {
    await using database = await openDatabase();
    const { state, offsetMs } = await readWithClock(database.db);
    const where = database.dataDir === undefined ? "the operator's" : "embedded";
    if (state.major < 15) report("database", "fail", `PostgreSQL ${state.version} is too old: use 15 or newer`);
    else if (state.isStandby)
      report("database", "fail", "the server is a standby and takes no writes: name the primary");
    else report("database", "ok", `PostgreSQL ${state.version}, ${where}`);

    const pending = await pendingMigrations(database.db);
    if (pending.length === 0) report("schema", "ok", "up to date");
    else
      report("schema", "warn", `lacks ${pending.join(", ")}: run carillon migrate, or start the server, which does it`);

    const off = Math.abs(offsetMs);
    const detail = `this machine and the database differ by ${Math.round(off)} ms`;
    const advice = ": set both by NTP; the database's clock decides what is due, this one dates signatures";
    if (off < CLOCK_WARN_MS) report("clock", "ok", detail);
    else report("clock", off < CLOCK_FAIL_MS ? "warn" : "fail", detail + advice);

    const virtualAt = await virtualClockAt(database.db);
    if (virtualAt !== undefined) {
      const stands = `virtual: it stands at ${virtualAt.toISOString()} until carillon clock advance moves it`;
      if (database.config.virtualClock) report("clock", "ok", stands);
      else
        report("clock", "warn", `${stands}; a start without CARILLON_VIRTUAL_CLOCK gives the real time back for good`);
    }
    report("durability", ...durabilityFinding(state));
    if (pending.length === 0) await checkSecretsKey(database, report);
  } catch (error) {
    report("database", "fail", failureText(error).replace(/^carillon: /, ""));
  }
}

/** Looks for the vault's key, and at whether it opens what the database holds. */
async function checkSecretsKey({ db, openVault }: OpenDatabase, report: Report): Promise<void> {
  try {
    const missing = await missingVaultKeys(db, (await openVault()).seals);
    if (missing.length === 0) report("secrets", "ok", "the key opens all signing keys in the database");
    else {
      report(
        "secrets",
        "fail",
        `signing keys are sealed by ${missing.join(", ")}: add that key to CARILLON_SECRETS_KEY`,
      );
    }
  } catch (error) {
    report("secrets", "fail", (error as Error).message);
  }
}

/** Milliseconds by which the database is ahead of this machine: its answer is taken to be made half-way. */
async function readWithClock(db: Db): Promise<{ state: ServerState; offsetMs: number }> {
  await readServerState(db);
  const before = Date.now();
  const state = await readServerState(db);
  return { state, offsetMs: state.nowMs - (before + Date.now()) / 2 };
}

function durabilityFinding(state: ServerState): [Verdict, string] {
  const standbys = state.synchronousStandbys === "" ? "" : `, commits wait for ${state.synchronousStandbys}`;
  switch (durabilityOf(state)) {
    case "power-safe":
      return ["ok", `power-safe: what was acknowledged survives the loss of power${standbys}`];
    case "crash-safe":
      return [
        "warn",
        `crash-safe only: the loss of power may lose or break data (fsync ${state.fsync}, full_page_writes ` +
          `${state.fullPageWrites}): set both on`,
      ];
    case "not durable":
      return ["warn", "not durable: a crash may lose what was acknowledged: set synchronous_commit to on"];
  }
}

async function checkDataDir(config: Config, report: Report): Promise<void> {
  if (config.databaseUrl !== undefined) return report("data", "ok", "in the operator's database; no data directory");
  const dataDir = config.dataDir ?? (await defaultDataDir(dataHome()));
  try {
    await stat(dataDir);
    await access(dataDir, constants.W_OK);
    const { bavail, bsize } = await statfs(dataDir);
    const free = bavail * bsize;
    const detail = `${dataDir}, ${(free / 1e9).toFixed(1)} GB free`;
    report("data", free < SPACE_WARN ? "warn" : "ok", free < SPACE_WARN ? `${detail}: make room` : detail);
  } catch (error) {
    report("data", "fail", `${(error as Error).message}: name a directory with CARILLON_DATA_DIR`);
  }
}

async function checkPort({ host, port }: Config, report: Report): Promise<void> {
  const error = await tryToListen(host, port);
  if (error === undefined) report("port", "ok", `${host} port ${port} is free`);
  else if (error.code === "EADDRINUSE") {
    report("port", "warn", `${host} port ${port} is in use: by a running Carillon, or set CARILLON_PORT to another`);
  } else
    report("port", "fail", `${host} port ${port} cannot be opened (${error.code}): set CARILLON_HOST, CARILLON_PORT`);
}

function tryToListen(host: string, port: number): Promise<NodeJS.ErrnoException | undefined> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", resolve);
    server.listen({ host, port }, () => server.close(() => resolve(undefined)));
  });
}

/** Looks at the rules for outbound requests. Dials nothing. */
function checkEgress(config: Config, report: Report): void {
  const allow = parseAllowList(config.allowTargets);
  const policy: TargetPolicy = { allowHttp: config.allowHttpTargets, allowLoopback: false, allow };
  const opened = ["https://169.254.169.254/", "https://[fd00:ec2::254]/"].filter((url) => isAllowed(url, policy));
  if (opened.length > 0) report("egress", "fail", `metadata addresses are targets: ${opened.join(", ")}`);
  else if (allow.length > 0) report("egress", "ok", `public targets, and ${config.allowTargets}`);
  else report("egress", "ok", "public targets only; CARILLON_ALLOW_TARGETS opens private ones");
  if (config.allowHttpTargets)
    report("egress", "warn", "plain http is allowed: bodies and headers can be read on the way");
  if (getServers().length === 0) report("egress", "warn", "no DNS server is configured: host names cannot be resolved");
}

function isAllowed(url: string, policy: TargetPolicy): boolean {
  try {
    checkTarget("url", url, policy);
    return true;
  } catch {
    return false;
  }
}
