import { execFile } from "node:child_process";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { testDatabase } from "../support/database.ts";
import { TEST_SECRETS_KEY } from "../support/signing.ts";
import { call, run, type Server, start, startDev, startProgram, temporaryDataDir, whenServing } from "./harness.ts";

const shell = (line: string) => promisify(execFile)("/bin/sh", ["-c", line]);

describe("carillon dev on its own PostgreSQL", () => {
  let data: Awaited<ReturnType<typeof temporaryDataDir>>;
  let env: Record<string, string>;
  let server: Server;
  beforeAll(async () => {
    data = await temporaryDataDir();
    env = { CARILLON_DATA_DIR: data.path };
    server = await startDev(env);
  });
  afterAll(async () => {
    server.child.kill("SIGTERM");
    await server.ended;
    await data[Symbol.asyncDispose]();
  });

  test("prints where everything is, the key, how to delete the data, and that it is no production", () => {
    const banner = server.output();
    expect(banner).toContain("DEVELOPMENT MODE");
    expect(banner).toContain(`${server.url}/v1/scheduling`);
    expect(banner).toContain(`gRPC       ${server.url.slice("http://".length)}`);
    expect(banner).toContain(`${server.url}/healthz`);
    expect(banner).toContain(`Data       ${data.path}`);
    expect(banner).toContain(`rm -rf ${data.path}`);
    expect(server.key).toMatch(/^crl_[0-9A-Za-z]{36}$/);
  });

  test("the printed curl line publishes when it is pasted into a shell", async () => {
    const [line] = await server.see(/curl .*\n/);
    const { stdout } = await shell(line);
    expect(JSON.parse(stdout)).toMatchObject({ message_id: expect.stringMatching(/^msg_/) });
  });

  test("the addresses of health answer without a key", async () => {
    for (const path of ["/healthz", "/readyz"]) expect((await fetch(server.url + path)).status).toBe(200);
  });

  test("what holds a secret is closed to other users", async () => {
    for (const file of ["carillon.key", "carillon.url", "carillon.secrets-key"]) {
      expect((await stat(join(data.path, file))).mode & 0o777, file).toBe(0o600);
    }
  });

  test("a second one on the same data directory is refused in one line that names the first", async () => {
    const { code, stderr } = await run(["dev"], { ...env, CARILLON_PORT: "0" });
    expect(code).toBe(1);
    expect(stderr).toMatch(new RegExp(`^carillon: .* in use by the Carillon with pid ${server.child.pid}.*\\n$`));
  });

  test("keys are made beside it, without a database URL", async () => {
    const { code, stdout } = await run(["keys", "create", "--project", "beside", "--json"], env);
    expect(code).toBe(0);
    const { key } = JSON.parse(stdout);
    expect((await call(server, key, "/queue/list")).json).toEqual({ items: [] });
  });

  test("doctor finds nothing broken beside it, and names the durability class", async () => {
    const { code, stdout } = await run(["doctor"], { ...env, CARILLON_PORT: "0" });
    expect(stdout).toMatch(/^ok {4}database {4}PostgreSQL \d+.*, embedded$/m);
    expect(stdout).toMatch(/^ok {4}schema {6}up to date$/m);
    expect(stdout).toMatch(/^ok {4}clock /m);
    expect(stdout).toMatch(/^ok {4}durability {2}power-safe/m);
    expect(stdout).toMatch(/^ok {4}secrets {5}the key opens/m);
    expect(stdout).toMatch(/^ok {4}port /m);
    expect(stdout).toMatch(/^ok {4}egress /m);
    expect(code).toBe(0);
  });

  test("listen prints what a task delivers and that its signature is valid", async () => {
    await using listener = start(["listen", "--port", "0"], env);
    const [, url = ""] = await listener.see(/Listening on (\S+)/);
    const task = { task_url: `${url}hook`, payload: { n: 1 }, run_at: new Date().toISOString() };
    expect((await call(server, server.key, "/task/schedule", task)).status).toBe(200);
    await listener.see(/signature: .*\n/);
    expect(listener.output()).toMatch(/POST \/hook\n/);
    expect(listener.output()).toContain("signature: valid");
    expect(listener.output()).toMatch(/webhook-id: task_|webhook-id: run_/);
    listener.child.kill("SIGINT");
    expect((await listener.ended).code).toBe(0);
  });

  test("listen tells a signature of another secret", async () => {
    await using listener = start(["listen", "--port", "0", "--secret", "whsec_b3RoZXI=", "--status", "500"], env);
    const [, url = ""] = await listener.see(/Listening on (\S+)/);
    const task = { task_url: url, payload: {}, run_at: new Date().toISOString(), retries: 0 };
    expect((await call(server, server.key, "/task/schedule", task)).status).toBe(200);
    await listener.see(/signature: INVALID for this secret/);
  });

  test("kill -9 loses nothing that was acknowledged, and the key stays the same", async () => {
    const published = await call(server, server.key, "/queue/publish", { queue: "kept", payload: { n: 1 } });
    expect(published.status).toBe(200);
    server.child.kill("SIGKILL");
    await server.ended;
    const restarted = await startDev(env);
    expect(restarted.key).toBe(server.key);
    server = restarted;
    const { json } = await call(server, server.key, "/queue/consume", { queue: "kept" });
    expect(json["messages"]).toMatchObject([{ message_id: published.json["message_id"], payload: { n: 1 } }]);
  });

  test("it ends loudly with code 1 when its PostgreSQL ends by itself", async () => {
    const pid = Number((await readFile(join(data.path, "pg-cluster/postmaster.pid"), "utf8")).split("\n")[0]);
    process.kill(pid, "SIGQUIT");
    const { code, stdout } = await server.ended;
    expect(code).toBe(1);
    expect(stdout).toMatch(/"level":"fatal".*the embedded PostgreSQL has ended by itself/);
    server = await startDev(env);
  });
});

describe("carillon dev on another server", () => {
  test("accepts the key from the environment, and stores it nowhere", async () => {
    await using database = await testDatabase();
    await using server = await startDev({
      DATABASE_URL: database.url,
      CARILLON_API_KEY: "my-own key".replace(" ", "-"),
      CARILLON_SECRETS_KEY: TEST_SECRETS_KEY,
    });
    expect(server.key).toBe("my-own-key");
    expect((await call(server, "my-own-key", "/queue/list")).status).toBe(200);
    expect((await call(server, "another-key", "/queue/list")).status).toBe(401);
    expect(await database.db.selectFrom("api_keys").selectAll().execute()).toEqual([]);
  });

  test("npm start serves, and a SIGTERM to npm drains the server", async () => {
    await using database = await testDatabase();
    const env = { DATABASE_URL: database.url, CARILLON_SECRETS_KEY: TEST_SECRETS_KEY, CARILLON_PORT: "0" };
    await using server = await whenServing(startProgram("npm", ["start"], env));
    server.child.kill("SIGTERM");
    await server.ended;
    expect(server.output()).toContain('"msg":"stopped"');
    await expect(fetch(`${server.url}/healthz`)).rejects.toThrow();
  });

  test("has a clock that stands still, which doctor tells and a command moves, with --virtual-clock", async () => {
    await using database = await testDatabase();
    const env = { DATABASE_URL: database.url, CARILLON_SECRETS_KEY: TEST_SECRETS_KEY };
    await using server = await startDev(env, "--virtual-clock");
    const [, at = ""] = await server.see(/Clock +virtual: it stands at (\S+)/);
    const told = await run(["doctor"], { ...env, CARILLON_PORT: "0" });
    expect(told.stdout).toMatch(
      new RegExp(`^warn {2}clock {7}virtual: it stands at ${new Date(at).toISOString()} `, "m"),
    );
    const asked = await run(["doctor"], { ...env, CARILLON_PORT: "0", CARILLON_VIRTUAL_CLOCK: "on" });
    expect(asked.stdout).toMatch(/^ok {4}clock {7}virtual: it stands at /m);
    const [, command = ""] = await server.see(/Move it +carillon (.*)/);
    const client = { CARILLON_URL: server.url, CARILLON_API_KEY: server.key };
    const { code, stdout } = await run(command.split(" "), client);
    expect(code).toBe(0);
    const { now, reached } = JSON.parse(stdout);
    expect({ passedMs: Date.parse(now) - Date.parse(at), reached }).toEqual({ passedMs: 3_600_000, reached: true });
  });

  test("refuses to listen beyond loopback", async () => {
    const { code, stderr } = await run(["dev"], { CARILLON_HOST: "0.0.0.0" });
    expect(code).toBe(1);
    expect(stderr).toContain("loopback only");
  });
});
