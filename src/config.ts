import { SETTINGS, type Setting, type SettingName } from "./settings.ts";

type Value<S> = S extends Setting<infer T> ? (S extends { readonly fallback: undefined } ? T | undefined : T) : never;

/** `development` is `carillon dev`, `production` is `carillon serve`, `tool` is any other command. */
export type Mode = "development" | "production" | "tool";

/** The settings of a process, checked. */
export type Config = { readonly [Name in SettingName]: Value<(typeof SETTINGS)[Name]> } & {
  readonly mode: Mode;
  /** What the operator should know of and that does not keep the process from starting. */
  readonly warnings: readonly string[];
};

/** Settings that cannot be used: each problem is one line that names the variable, what it holds and the rule. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(problems.join("\n"));
    this.problems = problems;
  }
}

/** The environment, or one made for a test. */
export type Environment = Readonly<Record<string, string | undefined>>;

export interface LoadOptions {
  readonly mode: Mode;
  /** More checks, by setting. What one throws is reported beside the other problems, by its message. */
  readonly checks?: { readonly [Name in SettingName]?: (value: NonNullable<Config[Name]>) => void };
}

/**
 * Reads the settings from `env`. Pure. A variable that holds an empty text counts as not set.
 *
 * @throws ConfigError with all the problems at once.
 */
export function loadConfig(env: Environment, { mode, checks = {} }: LoadOptions): Config {
  const problems: string[] = [];
  const values: Record<string, unknown> = {};
  for (const [name, entry] of Object.entries(SETTINGS) as [SettingName, Setting<unknown>][]) {
    const used = entry.alias !== undefined && !env[entry.env] && env[entry.alias] ? entry.alias : entry.env;
    const given = env[used] || entry.fallback;
    if (given === undefined) continue;
    const problem = (detail: string) =>
      problems.push(`${used} is ${entry.isSecret ? "***" : JSON.stringify(given)}: ${detail}`);
    const parsed = entry.schema.safeParse(given);
    if (!parsed.success) {
      problem(`it must be ${entry.rule}${hintFor(used, given)}`);
      continue;
    }
    values[name] = parsed.data;
    try {
      checks[name]?.(parsed.data as never);
    } catch (error) {
      problem(error instanceof Error ? error.message : String(error));
    }
  }
  const config = { ...values, mode, warnings: warningsFor(env, mode) } as unknown as Config;
  problems.push(...unsafeCombinations(config));
  if (problems.length > 0) throw new ConfigError(problems);
  return config;
}

/** The settings of this process; `given` are those that its command line gives instead of the environment. */
export function loadProcessConfig(options: LoadOptions, given: Environment = {}): Config {
  return loadConfig({ ...process.env, ...given }, options);
}

/** XDG_DATA_HOME, where a user's programs keep their data; undefined when it is not set. */
export function dataHome(): string | undefined {
  return process.env["XDG_DATA_HOME"] || undefined;
}

/** The webhook secret that `carillon listen` verifies with when none is named; undefined when it is not set. */
export function listenSecret(): string | undefined {
  return process.env[LISTEN_SECRET] || undefined;
}

/** Where the commands that call a server find it, and their API key; undefined when they are not set. */
export function clientEnvironment(): { readonly url: string | undefined; readonly key: string | undefined } {
  return { url: process.env[CLIENT_URL] || undefined, key: process.env[SETTINGS.apiKey.env] || undefined };
}

/** A variable of the environment that a file of `carillon apply` names, for a secret. */
export function environmentVariable(name: string): string | undefined {
  return process.env[name] || undefined;
}

const LISTEN_SECRET = "CARILLON_WEBHOOK_SECRET";
const CLIENT_URL = "CARILLON_URL";

function hintFor(env: string, given: string): string {
  // Kubernetes describes a Service called carillon to every pod in variables that begin with its name.
  if (env === "CARILLON_PORT" && given.startsWith("tcp://")) {
    return " (Kubernetes set this for a Service named carillon: set enableServiceLinks: false in the pod)";
  }
  return "";
}

function unsafeCombinations(config: Config): string[] {
  const problems: string[] = [];
  if (config.mode === "development" && config.host !== undefined && !isLoopback(config.host)) {
    problems.push(
      `CARILLON_HOST is "${config.host}": development mode opens private targets and prints its key, so it listens on ` +
        "loopback only; use carillon serve",
    );
  }
  if (config.mode === "production" && config.databaseUrl === undefined) {
    problems.push(`CARILLON_DATABASE_URL is not set: carillon serve needs ${SETTINGS.databaseUrl.rule}`);
  }
  if (config.secretsKey !== undefined && config.secretsKeyFile !== undefined) {
    problems.push("CARILLON_SECRETS_KEY_FILE is set beside CARILLON_SECRETS_KEY: one of them has to go");
  }
  if (config.mode === "production" && config.secretsKey === undefined && config.secretsKeyFile === undefined) {
    problems.push(
      "CARILLON_SECRETS_KEY is not set: carillon serve seals the secrets in the database with it; openssl rand -base64 32 " +
        "prints a new one, which has to be kept and to be the same on every node",
    );
  }
  if (config.mode === "production" && config.virtualClock) {
    problems.push(
      "CARILLON_VIRTUAL_CLOCK is on: carillon serve lives in real time; the virtual clock is for carillon dev, where a " +
        "year of fires can be simulated with a database of its own",
    );
  }
  if (config.mode === "development" && config.virtualClock && config.role !== "all") {
    problems.push(
      `CARILLON_VIRTUAL_CLOCK is on beside CARILLON_ROLE=${config.role}: a virtual clock is for one process that does all`,
    );
  }
  if ((config.tlsCertFile === undefined) !== (config.tlsKeyFile === undefined)) {
    const missing = config.tlsCertFile === undefined ? SETTINGS.tlsCertFile : SETTINGS.tlsKeyFile;
    problems.push(`${missing.env} is not set: TLS needs the certificate and its key`);
  }
  return problems;
}

/** Whether `host` is a loopback address or `localhost`. */
function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);
}

function warningsFor(env: Environment, mode: Mode): string[] {
  const known = Object.values(SETTINGS).map((entry) => entry.env as string);
  const warnings: string[] = [];
  for (const name of Object.keys(env)) {
    if (!name.startsWith("CARILLON_") || known.includes(name) || [LISTEN_SECRET, CLIENT_URL].includes(name)) continue;
    if (/^CARILLON_(TEST_|SERVICE_(HOST|PORT)|PORT_\d)/.test(name)) continue;
    const [closest, distance] = closestName(name, known);
    const guess = distance <= Math.max(2, closest.length / 5) ? `; did you mean ${closest}?` : "";
    warnings.push(`${name} is no setting of Carillon${guess}`);
  }
  if (mode === "production" && env[SETTINGS.apiKey.env]) {
    warnings.push("CARILLON_API_KEY is for development mode and is not accepted here: use carillon keys create");
  }
  return warnings;
}

function closestName(name: string, known: readonly string[]): [string, number] {
  const ranked = known.map((other): [string, number] => [other, editDistance(name, other)]);
  return ranked.reduce((best, next) => (next[1] < best[1] ? next : best));
}

/** Levenshtein distance: how many characters to insert, delete or replace to turn `a` into `b`. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
