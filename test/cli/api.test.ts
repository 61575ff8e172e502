import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadCalls } from "../../src/cli/api/contract.ts";
import { startTestCarillon, TEST_KEY, type TestCarillon } from "../support/carillon.ts";
import { type Ended, run, start } from "./harness.ts";

let server: TestCarillon;
let env: Record<string, string>;
beforeAll(async () => {
  server = await startTestCarillon();
  env = { CARILLON_URL: server.url, CARILLON_API_KEY: TEST_KEY };
});
afterAll(() => server[Symbol.asyncDispose]());

/** Runs a command that must do well, and gives what it printed as JSON. */
// biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
async function ok(args: readonly string[], input?: string): Promise<any> {
  const ended = await run(args, env, input);
  expect(ended.stderr).toBe("");
  expect(ended.code).toBe(0);
  return JSON.parse(ended.stdout);
}

function carillon(...args: string[]): Promise<Ended> {
  return run(args, env);
}

/** Each command is a process; the rest is for a busy machine. */
const COMMANDS = { timeout: 120_000 };

describe("the commands", COMMANDS, () => {
  test("every call with a path is one, with the words of its path", async () => {
    const calls = await loadCalls();
    const commands = calls.map(({ words }) => words.join(" "));
    expect(commands).toContain("cron create");
    expect(commands).toContain("queue dlq redrive_job start");
    expect(new Set(commands).size).toBe(commands.length);
    expect(calls.length).toBeGreaterThan(50);
  });

  test("its help is the contract's comment, with the names of enums and what is required", async () => {
    const { code, stdout } = await carillon("cron", "create", "--help");
    expect(code).toBe(0);
    expect(stdout).toContain("Creates a cron job and computes its first fire time.");
    expect(stdout).toMatch(/--cron-expr <text> +Required\. When to fire\./);
    expect(stdout).toMatch(/"allow", "skip",\s+"queue", "cancel_previous"/);
    expect(stdout).not.toMatch(/--schedule/);
  });

  test("a group lists its commands, each in a sentence", async () => {
    const { stdout } = await carillon("queue", "dlq", "--help");
    expect(stdout).toMatch(/list \[options\] <queue> +lists a queue's dead letters, newest first\n/);
    expect(stdout).toMatch(/redrive-job\|redrive_job/);
  });

  test("what is in the path are arguments, what is not are options, in dashes or underscores", async () => {
    await ok(["queue", "create", "--queue", "words", "--max-retries", "3", "--enable-priority", "--type", "standard"]);
    const queue = await ok(["queue", "update", "words", "--no-enable-priority", "--visibility-timeout-default", "7"]);
    expect(queue).toMatchObject({ max_retries: 3, enable_priority: false, visibility_timeout_default: 7 });
    const { messages } = await ok(["queue", "consume", "--queue", "words"]);
    expect(messages).toEqual([]);
    expect(await ok(["queue", "ack_batch", "--queue", "words", "--item", '{"message_id": "msg_1"}'])).toMatchObject({
      results: [{ acked: false }],
    });
  });

  test("the documented second names of fields work too", async () => {
    const job = await ok(["cron", "create", "--schedule", "0 9 * * 1", "--task-url", "http://127.0.0.1:1/x"]);
    expect(job).toMatchObject({ cron_expr: "0 9 * * 1", url: "http://127.0.0.1:1/x" });
  });

  test("a second name that is the singular of a list's is one option with it", async () => {
    const { items } = await ok(["task", "list", "--label", "tenant=acme", "--label", "kind=mail"]);
    expect(items).toEqual([]);
  });

  test("maps, times, lists of messages and files go in; null clears", async () => {
    const job = await ok([
      ...["cron", "create", "--cron-expr", "@daily", "--url", "http://127.0.0.1:1/y", "--max-runs", "2"],
      ...["--header", "x-a=1=2", "--header", "x-b="],
    ]);
    expect(job).toMatchObject({ headers: { "x-a": "1=2", "x-b": "" }, max_runs: 2 });
    const cleared = await ok(["cron", "update", job.cron_id, "--clear", "max-runs", "--retries", "0"]);
    expect(cleared).not.toHaveProperty("max_runs");
    expect(cleared.retries).toBe(0);
    const task = await ok([
      "task",
      "schedule",
      "--url",
      "http://127.0.0.1:1/t",
      "--run-at",
      "2030-01-01T00:00:00+02:00",
    ]);
    expect(task.run_at).toBe("2029-12-31T22:00:00.000Z");
    const batch = join(tmpdir(), `carillon-batch-${process.pid}.json`);
    await writeFile(batch, '[{"payload": 1}, {"payload": 2}]');
    const { message_ids } = await ok([
      ...["queue", "publish-batch", "--queue", "words", "--message", `@${batch}`, "--message", '{"payload": 3}'],
    ]);
    expect(message_ids).toHaveLength(3);
  });
});

describe("payloads", COMMANDS, () => {
  test("are sent as they are, digit for digit, from an option or standard input", async () => {
    const digits = '{"n":12345678901234567890.10}';
    await server.rest("POST", "/queue/create", { queue: "payloads" });
    await ok(["queue", "publish", "--queue", "payloads", "--payload", digits]);
    await ok(["queue", "publish", "--queue", "payloads", "--payload", "-"], `${digits}\n`);
    const { code, stdout } = await carillon("queue", "consume", "--queue", "payloads", "--max-messages", "2");
    expect(code).toBe(0);
    expect(stdout.split(digits)).toHaveLength(3);
  });

  test("that are not JSON need their content type", async () => {
    const refused = await carillon("queue", "publish", "--queue", "payloads", "--payload", "hello");
    expect(refused).toMatchObject({ code: 2, stdout: "" });
    expect(refused.stderr).toContain("--payload is not JSON");
    await ok(["queue", "publish", "--queue", "payloads", "--payload", "hello", "--content-type", "text/plain"]);
    const { messages } = await ok(["queue", "consume", "--queue", "payloads"]);
    expect(Buffer.from(messages[0].payload, "base64").toString()).toBe("hello");
  });
});

describe("answers", COMMANDS, () => {
  test("--all follows the cursors, and stops where it is told to with the cursor to go on", async () => {
    for (let n = 0; n < 5; n++) await server.rest("POST", "/queue/create", { queue: `page-${n}` });
    const whole = await ok(["queue", "list", "--limit", "2", "--all"]);
    expect(whole).not.toHaveProperty("next_cursor");
    expect(whole.items.length).toBeGreaterThanOrEqual(5);
    const part = await carillon("queue", "list", "--limit", "2", "--all", "--max-items", "3");
    expect(part.code).toBe(0);
    expect(part.stderr).toContain("stopped at 4 items");
    const { items, next_cursor } = JSON.parse(part.stdout);
    const rest = await ok(["queue", "list", "--cursor", next_cursor, "--all"]);
    expect([...items, ...rest.items]).toEqual(whole.items);
  });

  test("are a table on demand: rows of a list, or fields of one thing", async () => {
    await server.rest("POST", "/queue/create", { queue: "tabled", type: "fifo" });
    const list = await carillon("queue", "list", "--output", "table");
    expect(list.stdout).toMatch(/^QUEUE +TYPE +MAX_RETRIES /);
    expect(list.stdout).toMatch(/^tabled +fifo +5 /m);
    const one = await carillon("queue", "get", "tabled", "--output", "table");
    expect(one.stdout).toMatch(/^FIELD +VALUE\nqueue +tabled\ntype +fifo\n/);
  });

  test("warnings of the server go to standard error", async () => {
    const { code, stdout, stderr } = await carillon("queue", "publish", "--queue", "made", "--payload", "{}");
    expect(code).toBe(0);
    expect(JSON.parse(stdout).message_id).toMatch(/^msg_/);
    expect(stderr).toMatch(/^carillon: warning: .*made.*created/);
  });

  test("a stream prints a line for each answer until Ctrl-C, and its leases go back", async () => {
    await server.rest("POST", "/queue/create", { queue: "streamed" });
    await using stream = start(["queue", "consume-stream", "streamed"], env);
    const { message_id } = await ok(["queue", "publish", "--queue", "streamed", "--payload", '{"n": 1}']);
    const [line] = await stream.see(/\{.*\}\n/);
    expect(JSON.parse(line)).toMatchObject({ messages: [{ message_id, payload: { n: 1 } }] });
    stream.child.kill("SIGINT");
    expect(await stream.ended).toMatchObject({ code: 0, stdout: line, stderr: "" });
    const { messages } = await ok(["queue", "consume", "--queue", "streamed", "--wait-seconds", "10"]);
    expect(messages).toMatchObject([{ message_id, failures: 0 }]);
  });
});

describe("failures", COMMANDS, () => {
  test("a refusal ends with 1, and tells the code, the reason, the fields and the request", async () => {
    const unknown = await carillon("queue", "get", "nowhere");
    expect(unknown).toMatchObject({ code: 1, stdout: "" });
    expect(unknown.stderr).toMatch(
      /^carillon: NOT_FOUND \/ QUEUE_NOT_FOUND: .*nowhere.*\n(.*\n)* {2}request req_\w+\n$/,
    );
    const fields = await carillon("queue", "create", "--queue", "a b", "--max-retries", "-1");
    expect(fields.code).toBe(1);
    expect(fields.stderr).toMatch(/INVALID_ARGUMENT \/ FIELD_INVALID/);
    expect(fields.stderr).toMatch(/^ {2}queue: /m);
    expect(fields.stderr).toMatch(/^ {2}max_retries: /m);
  });

  test("a stream that is refused ends with 1", async () => {
    const { code, stderr } = await carillon("queue", "consume-stream", "nowhere");
    expect(code).toBe(1);
    expect(stderr).toContain("QUEUE_NOT_FOUND");
  });

  test.each([
    ["an unknown command", ["quue", "list"]],
    ["an unknown option", ["queue", "list", "--lmit", "3"]],
    ["a missing argument", ["queue", "get"]],
    ["a number that is none", ["queue", "list", "--limit", "many"]],
    ["a name that an enum has not", ["queue", "create", "--queue", "q", "--type", "lifo"]],
    ["a header without a value", ["cron", "create", "--header", "x-a"]],
    ["a path that would lead elsewhere", ["queue", "get", ".."]],
    ["an address that is none", ["--url", "localhost:7070", "queue", "list"]],
  ])("%s ends with 2", async (_, args) => {
    const { code, stdout, stderr } = await carillon(...args);
    expect(code).toBe(2);
    expect(stdout).toBe("");
    expect(stderr).not.toBe("");
  });

  test("no key ends with 2, and a wrong one is refused; neither is printed", async () => {
    const none = await run(["queue", "list"], { CARILLON_URL: server.url });
    expect(none).toMatchObject({ code: 2, stderr: "carillon: no API key: set CARILLON_API_KEY, or pass --key\n" });
    const wrong = await carillon("queue", "list", "--key", "not-the-key");
    expect(wrong.code).toBe(1);
    expect(wrong.stderr).toContain("API_KEY_INVALID");
    expect(wrong.stderr).not.toContain("not-the-key");
  });

  test("a server that is not there, is another, or does not answer in time ends with 3", async () => {
    const silent = createServer((request, response) => {
      if (request.url?.includes("/cron/")) response.writeHead(404).end("<html>");
    });
    await once(silent.listen(0, "127.0.0.1"), "listening");
    const { port } = silent.address() as { port: number };
    const url = `http://127.0.0.1:${port}`;
    const late = await carillon("queue", "list", "--url", url, "--timeout", "0.2");
    expect(late).toMatchObject({ code: 3, stdout: "" });
    expect(late.stderr).toMatch(/no answer from .* within 0.2 s; whether the call took effect is unknown/);
    const other = await carillon("cron", "list", "--url", url);
    expect(other).toMatchObject({ code: 3 });
    expect(other.stderr).toContain("answered 404 with something that is not Carillon's");
    silent.closeAllConnections();
    silent.close();
    await once(silent, "close");
    const gone = await carillon("queue", "list", "--url", url);
    expect(gone).toMatchObject({ code: 3 });
    expect(gone.stderr).toMatch(/cannot be reached: connect ECONNREFUSED/);
  });

  test("where a call has a field url, the server's goes before the command", async () => {
    const { stdout, code } = await run(
      ["--url", server.url, "cron", "create", "--cron-expr", "@daily", "--url", "http://127.0.0.1:1/z"],
      { CARILLON_API_KEY: TEST_KEY },
    );
    expect(code).toBe(0);
    expect(JSON.parse(stdout).url).toBe("http://127.0.0.1:1/z");
  });
});
