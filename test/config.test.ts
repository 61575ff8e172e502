import { inspect } from "node:util";
import { describe, expect, test } from "vitest";
import { ConfigError, type Environment, loadConfig, type Mode } from "../src/config.ts";
import { SETTINGS } from "../src/settings.ts";

const SECRETS_KEY = Buffer.alloc(32, 1).toString("base64");
/** What production needs. */
const PRODUCTION = { DATABASE_URL: "postgres://h/d", CARILLON_SECRETS_KEY: SECRETS_KEY };

function problemsOf(env: Environment, mode: Mode = "tool"): readonly string[] {
  try {
    loadConfig(env, { mode });
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
}

describe("loadConfig", () => {
  test("gives every setting its documented default", () => {
    const config = loadConfig({}, { mode: "development" });
    expect(config).toMatchObject({
      host: "127.0.0.1",
      port: 7070,
      allowTargets: "",
      maxPayloadBytes: 1_048_576,
      idempotencyTtlSeconds: 86_400,
      autoCreateQueues: true,
      shutdownGraceSeconds: 25,
      logLevel: "info",
    });
    expect(config.databaseUrl).toBeUndefined();
    expect(config.warnings).toEqual([]);
  });

  test("reports all bad settings at once, each with its name, what it holds and the rule", () => {
    const problems = problemsOf({
      CARILLON_PORT: "70000",
      CARILLON_LOG_LEVEL: "loud",
      CARILLON_AUTO_CREATE_QUEUES: "maybe",
      CARILLON_IDEMPOTENCY_TTL_SECONDS: "59",
      CARILLON_TLS_CERT_FILE: "/cert.pem",
    });
    expect(problems).toEqual([
      'CARILLON_PORT is "70000": it must be a whole number from 0 to 65535',
      'CARILLON_IDEMPOTENCY_TTL_SECONDS is "59": it must be a whole number of seconds from 60 to 604800',
      'CARILLON_AUTO_CREATE_QUEUES is "maybe": it must be on or off',
      'CARILLON_LOG_LEVEL is "loud": it must be one of trace, debug, info, warn, error, fatal, silent',
      "CARILLON_TLS_KEY_FILE is not set: TLS needs the certificate and its key",
    ]);
  });

  test.each(["7070 ", "-1", "1e3", "0x10", "٧", "NaN", "65536"])("refuses %j as a port", (port) => {
    expect(problemsOf({ CARILLON_PORT: port })).toHaveLength(1);
  });

  test("an empty variable counts as not set", () => {
    const config = loadConfig({ CARILLON_PORT: "", CARILLON_DATABASE_URL: "" }, { mode: "tool" });
    expect(config.port).toBe(7070);
    expect(config.databaseUrl).toBeUndefined();
  });

  test("CARILLON_DATABASE_URL wins over DATABASE_URL, which counts alone", () => {
    const both = { CARILLON_DATABASE_URL: "postgres://h/ours", DATABASE_URL: "postgres://h/theirs" };
    expect(loadConfig(both, { mode: "tool" }).databaseUrl?.reveal()).toBe("postgres://h/ours");
    const one = { DATABASE_URL: "postgresql://h/theirs" };
    expect(loadConfig(one, { mode: "tool" }).databaseUrl?.reveal()).toBe("postgresql://h/theirs");
    expect(problemsOf({ DATABASE_URL: "mysql://h/x" })[0]).toMatch(/^DATABASE_URL is \*\*\*/);
  });

  test("secrets print as *** everywhere, in problems too", () => {
    const url = "postgres://user:hunter2@host/db";
    const config = loadConfig({ CARILLON_DATABASE_URL: url, CARILLON_API_KEY: "hunter2" }, { mode: "tool" });
    const printed = [`${config.databaseUrl} ${config.apiKey}`, JSON.stringify(config), inspect(config, { depth: 9 })];
    for (const text of printed) expect(text).not.toContain("hunter2");
    for (const text of printed) expect(text).toContain("***");
    expect(problemsOf({ CARILLON_API_KEY: "hunter2 with spaces" }).join()).not.toContain("hunter2");
  });

  test("development mode listens on loopback only", () => {
    for (const host of ["127.0.0.1", "127.9.9.9", "::1", "localhost"]) {
      expect(problemsOf({ CARILLON_HOST: host }, "development")).toEqual([]);
    }
    for (const host of ["0.0.0.0", "::", "192.168.1.5", "127.0.0.1.example.com"]) {
      expect(problemsOf({ CARILLON_HOST: host }, "development")[0]).toContain("loopback only");
      expect(problemsOf({ CARILLON_HOST: host, ...PRODUCTION }, "production")).toEqual([]);
    }
  });

  test("production needs a database, and a key for the secrets in it", () => {
    expect(problemsOf({}, "production")).toEqual([
      "CARILLON_DATABASE_URL is not set: carillon serve needs a URL such as postgres://user:password@host:5432/database",
      expect.stringMatching(/^CARILLON_SECRETS_KEY is not set: .*openssl rand -base64 32/),
    ]);
    const fromFile = { ...PRODUCTION, CARILLON_SECRETS_KEY: "", CARILLON_SECRETS_KEY_FILE: "/run/secrets/key" };
    expect(problemsOf(fromFile, "production")).toEqual([]);
    expect(problemsOf({ ...fromFile, CARILLON_SECRETS_KEY: SECRETS_KEY }, "production")[0]).toMatch(/one of them/);
  });

  test("a secrets key is 32 bytes in base64, one or several, and is not repeated when it is refused", () => {
    const other = Buffer.alloc(32, 2).toString("base64");
    for (const keys of [SECRETS_KEY, `${SECRETS_KEY},${other}`, ` ${SECRETS_KEY}\n${other}\n`]) {
      expect(problemsOf({ CARILLON_SECRETS_KEY: keys })).toEqual([]);
    }
    for (const keys of ["hunter2", `${SECRETS_KEY},hunter2`, SECRETS_KEY.slice(1), `${SECRETS_KEY}${other}`]) {
      expect(problemsOf({ CARILLON_SECRETS_KEY: keys })[0]).toMatch(/^CARILLON_SECRETS_KEY is \*\*\*: it must be/);
    }
  });

  test("a virtual clock is refused in production, and for a part of a node", () => {
    const env = { CARILLON_VIRTUAL_CLOCK: "on" };
    expect(problemsOf({ ...PRODUCTION, ...env }, "production")).toEqual([
      expect.stringMatching(/^CARILLON_VIRTUAL_CLOCK is on: carillon serve lives in real time/),
    ]);
    expect(problemsOf({ ...env, CARILLON_ROLE: "worker" }, "development")[0]).toContain("CARILLON_ROLE=worker");
    expect(problemsOf(env, "development")).toEqual([]);
  });

  test("production says that it does not accept the development key", () => {
    const env = { ...PRODUCTION, CARILLON_API_KEY: "k" };
    expect(loadConfig(env, { mode: "production" }).warnings.join()).toContain("CARILLON_API_KEY");
    expect(loadConfig(env, { mode: "development" }).warnings).toEqual([]);
  });

  test("warns about unknown settings and guesses what was meant", () => {
    const { warnings } = loadConfig({ CARILLON_PROT: "1", CARILLON_NONSENSE_XYZ: "1", PATH: "/" }, { mode: "tool" });
    expect(warnings).toEqual([
      "CARILLON_PROT is no setting of Carillon; did you mean CARILLON_PORT?",
      "CARILLON_NONSENSE_XYZ is no setting of Carillon",
    ]);
  });

  test("explains the variables that Kubernetes makes of a Service named carillon", () => {
    expect(problemsOf({ CARILLON_PORT: "tcp://10.0.0.1:7070" })[0]).toContain("enableServiceLinks");
    const others = { CARILLON_SERVICE_HOST: "10.0.0.1", CARILLON_PORT_7070_TCP_ADDR: "10.0.0.1" };
    expect(loadConfig(others, { mode: "tool" }).warnings).toEqual([]);
  });

  test("reports what a further check throws beside the other problems", () => {
    const checks = {
      allowTargets: (list: string) => {
        throw new RangeError(`no network: ${list}`);
      },
    };
    const load = () => loadConfig({ CARILLON_ALLOW_TARGETS: "x", CARILLON_PORT: "x" }, { mode: "tool", checks });
    expect(load).toThrow(/CARILLON_PORT.*\nCARILLON_ALLOW_TARGETS is "x": no network: x/);
  });

  test.each([
    ["https://a.example", true],
    ["https://a.example,http://localhost:3000", true],
    ["https://a.example/", false],
    ["*", false],
    ["a.example", false],
  ])("origins %j are accepted: %s", (origins, accepted) => {
    expect(problemsOf({ CARILLON_CORS_ORIGINS: origins }).length === 0).toBe(accepted);
  });

  test("every default obeys its own rule", () => {
    for (const { env, fallback, schema } of Object.values(SETTINGS)) {
      if (fallback !== undefined) expect(schema.safeParse(fallback).success, env).toBe(true);
    }
  });
});
