import { once } from "node:events";
import { connect as connectTcp, type Socket } from "node:net";
import { Worker } from "node:worker_threads";
import { sql } from "kysely";
import { expect, onTestFinished, test } from "vitest";
import { formatId } from "../../src/domain/ids.ts";
import { LEASE_MARGIN_SECONDS } from "../../src/store/runs-leasing.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { type Receiver, type Reply, startReceiver } from "../support/receiver.ts";
import { must, until } from "./calls.ts";
import { startNode } from "./node.ts";
import { sized } from "./scale.ts";
import { seededRandom } from "./seed.ts";

/** Of an attempt. Longer than a dial may take, so that no attempt ends by itself before its node is killed. */
const TIMEOUT_SECONDS = 30;
/** How long a step may take on a busy machine, in milliseconds. */
const STEP_MS = 30_000;
const PAYLOAD = { order: "4711", note: "größer" };

/** Has the node at `node` make one delivery to `url`, now. */
type Order = (node: string, url: string) => Promise<unknown>;

interface Kind {
  readonly order: Order;
  /** What a request carries, as far as it is the same for every attempt. */
  readonly read: (body: Buffer) => unknown;
  readonly carries: unknown;
  /** Messages that go in one request, where there may be several. */
  readonly batch?: number;
}

const whole = { read: (body: Buffer): unknown => JSON.parse(body.toString()), carries: PAYLOAD };

const KINDS: ReadonlyMap<string, Kind> = new Map([
  [
    "a cron job's run",
    {
      ...whole,
      order: (node, url) =>
        must(node, "POST", "/cron/create", {
          cron_expr: "@every 1s",
          max_runs: 1,
          url,
          payload: PAYLOAD,
          retries: 3,
          timeout_seconds: TIMEOUT_SECONDS,
        }),
    },
  ],
  [
    "a task",
    {
      ...whole,
      order: (node, url) =>
        must(node, "POST", "/task/schedule", {
          url,
          run_at: 0,
          payload: PAYLOAD,
          retries: 3,
          timeout_seconds: TIMEOUT_SECONDS,
        }),
    },
  ],
  ["a replay", { ...whole, order: replayOrder }],
  ["an event", { ...whole, carries: expect.objectContaining({ type: "webhook.test" }), order: eventOrder }],
  ["a push in place of a consumer", { ...whole, order: pushOrder("compete") }],
  ["a push to every subscription", { ...whole, order: pushOrder("fanout") }],
  ["a FIFO push", { ...whole, order: pushOrder("compete", { type: "fifo" }) }],
  ["a FIFO push to every subscription", { ...whole, order: pushOrder("fanout", { type: "fifo" }) }],
  ["a push of a batch", batchOf(3, "compete")],
  ["a push of a batch to every subscription", batchOf(3, "fanout")],
]);

function pushOrder(mode: string, queue: object = {}, settings: object = {}, count = 1): Order {
  return async (node, url) => {
    await must(node, "POST", "/queue/create", { queue: "orders", max_retries: 3, ...queue });
    const subscription = { url, mode, visibility_timeout: TIMEOUT_SECONDS, timeout_seconds: TIMEOUT_SECONDS };
    await must(node, "POST", "/queue/push_subscribe/orders", { ...subscription, ...settings });
    const message = { payload: PAYLOAD, ...("type" in queue && { group_id: "g" }) };
    const messages = Array.from({ length: count }, () => message);
    await must(node, "POST", "/queue/publish_batch", { queue: "orders", messages });
  };
}

function batchOf(count: number, mode: string): Kind {
  return {
    order: pushOrder(mode, {}, { batch_size: count, batch_window_ms: 1_000 }, count),
    read: (body) => JSON.parse(body.toString()).messages.map(({ payload }: { payload: unknown }) => payload),
    carries: Array.from({ length: count }, () => PAYLOAD),
    batch: count,
  };
}

async function eventOrder(node: string, url: string): Promise<void> {
  const { webhook_id } = await must(node, "POST", "/webhook/create", { url, event_types: ["webhook.test"] });
  await must(node, "POST", `/webhook/test/${webhook_id}`);
}

/** Of a run that nothing listened for. */
async function replayOrder(node: string, url: string): Promise<void> {
  const job = { cron_expr: "0 0 0 1 1 * 2090", payload: PAYLOAD, timeout_seconds: TIMEOUT_SECONDS };
  const { cron_id } = await must(node, "POST", "/cron/create", { ...job, url: "http://127.0.0.1:9/", retries: 0 });
  const { run_id } = await must(node, "POST", `/cron/trigger/${cron_id}`);
  await until("the run to replay has failed", STEP_MS, async () => {
    const { state } = await must(node, "GET", `/cron/runs/get/${cron_id}/${run_id}`);
    return state === "failed" ? true : undefined;
  });
  await must(node, "PATCH", `/cron/update/${cron_id}`, { url, retries: 3 });
  const { items } = await must(node, "GET", `/delivery/list?run_id=${run_id}`);
  await must(node, "POST", `/delivery/replay/${items[0].delivery_id}`);
}

/** A delivery that is to be cut off. */
interface Doomed {
  readonly database: TestDatabase;
  /** Has it made, to the hook at this port. */
  order(port: number): Promise<unknown>;
  /** kill -9 of the node that makes it. */
  kill(): Promise<void>;
}

/** Kills the node at a point of its delivery, and resolves with a receiver that answers from now on. */
type Cut = (doomed: Doomed) => Promise<Receiver>;

/** With how many requests the receiver gets in all. */
const POINTS: ReadonlyMap<string, readonly [Cut, number]> = new Map([
  ["before the dial", [beforeTheDial, 1]],
  ["before the answer", [afterTheRequest, 2]],
  ["between the 2xx and its record", [beforeTheRecord, 2]],
]);

async function beforeTheDial({ database, order, kill }: Doomed): Promise<Receiver> {
  const wall = await startWall();
  await order(wall.port);
  await until("the attempt is recorded", STEP_MS, async () =>
    (await deliveries(database)).some(({ state }) => state === "running") ? true : undefined,
  );
  await kill();
  expect(await wall.answers()).toBe(false);
  await wall.leave();
  return openReceiver(wall.port);
}

async function afterTheRequest({ order, kill }: Doomed): Promise<Receiver> {
  const receiver = await openReceiver();
  receiver.respond((_request, index) => (index === 0 ? { hang: "before_headers" } : { status: 200 }));
  await order(receiver.port);
  await receiver.next(undefined, STEP_MS);
  await kill();
  await receiver.drained();
  return receiver;
}

async function beforeTheRecord({ database, order, kill }: Doomed): Promise<Receiver> {
  const receiver = await openReceiver();
  const held = Promise.withResolvers<Reply>();
  receiver.respond((_request, index) => (index === 0 ? held.promise : { status: 200 }));
  await order(receiver.port);
  await receiver.next(undefined, STEP_MS);

  const holder = await database.db.startTransaction().execute();
  await sql`select from runs for update`.execute(holder);
  const { rows } = await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(holder);
  held.resolve({ status: 200 });
  let recorder: number;
  try {
    recorder = await until("the node is about to record the answer", STEP_MS, async () => {
      const { rows: waiting } = await sql<{ pid: number }>`
        select pid from pg_stat_activity
        where datname = current_database() and query like '%response_status%'
          and ${rows[0]?.pid} = any(pg_blocking_pids(pid))`.execute(database.db);
      return waiting[0]?.pid;
    });
    await kill();
    // A statement that the node has sent, and that is a transaction by itself, would still be carried out.
    await sql`select pg_terminate_backend(${recorder})`.execute(database.db);
  } finally {
    await holder.rollback().execute();
  }
  await until("the killed node's session has ended", STEP_MS, async () => {
    const { rows: left } = await sql`select from pg_stat_activity where pid = ${recorder}`.execute(database.db);
    return left.length === 0 ? true : undefined;
  });
  return receiver;
}

async function openReceiver(port = 0): Promise<Receiver> {
  const receiver = await startReceiver({ port });
  onTestFinished(() => receiver[Symbol.asyncDispose]());
  return receiver;
}

/** At full size every kind at every point, else each kind at one of them, which one being up to chance. */
const parts = sized(1, POINTS.size);
const shift = Math.floor(seededRandom("kill points")() * parts);
const CASES = [...POINTS].flatMap(([point, [cut, requests]], i) =>
  [...KINDS]
    .filter((_, k) => (k + shift) % parts === i % parts)
    .map(([name, kind]) => ({ point, cut, requests, name, kind })),
);

test.each(CASES)(
  "$name, its node killed $point, arrives by another node, under the same id",
  async ({ cut, requests, name, kind: { order, read, carries, batch = 1 } }) => {
    await using database = await testDatabase();
    const env = { CARILLON_DATABASE_URL: database.url };
    const doomed = await startNode(env);
    const receiver = await cut({
      database,
      order: (port) => order(doomed.url, `http://127.0.0.1:${port}/hook`),
      kill: () => doomed.kill(),
    });

    expect(doomed.child.signalCode).toBe("SIGKILL");
    expect(receiver.count).toBe(requests - 1);
    // Begun, and nobody knows how it ended.
    const first = { state: "running", attempts: [{ attempt: 1, ended: false, status: null }] };
    expect(await deliveries(database)).toMatchObject(Array(batch).fill(first));

    const other = await startNode(env);
    await database.advanceClock(TIMEOUT_SECONDS + LEASE_MARGIN_SECONDS + 1);
    const done = await until("it is delivered", STEP_MS, async () => {
      const now = await deliveries(database);
      const waiting = now.filter(({ state }) => state === "retrying");
      if (waiting.length > 0) await database.advanceClock(Math.max(0, ...waiting.map(({ due_in }) => due_in)));
      return waiting.length > 0 || now.some(({ state }) => state === "running") ? undefined : now;
    });
    const twice = {
      state: "succeeded",
      attempts: [
        { attempt: 1, ended: false },
        { attempt: 2, ended: true, status: 200 },
      ],
    };
    expect(done).toMatchObject(Array(batch).fill(twice));
    if (name.includes("push")) {
      const stats = await must(other.url, "GET", "/queue/stats/orders");
      expect(stats).toMatchObject({ available: 0, delayed: 0, in_flight: 0, dlq: 0 });
    }

    expect(receiver.count).toBe(requests);
    const [{ run_id = "", replay_of = null, message_id = null } = {}] = done;
    const ofMessage = batch > 1 ? expect.stringMatching(/^batch_/) : formatId("msg", message_id ?? run_id);
    const id = message_id === null ? formatId("run", replay_of ?? run_id) : ofMessage;
    for (const { headers, body } of receiver.requests) {
      expect(headers["webhook-id"]).toEqual(id);
      expect(headers["webhook-id"]).toBe(receiver.requests[0]?.headers["webhook-id"]);
      expect(read(body)).toEqual(carries);
      // What says of a batch which attempt it is stands in its body.
      if (batch === 1) expect(body).toEqual(receiver.requests[0]?.body);
    }
    const last = receiver.requests.at(-1);
    if (batch === 1) expect(last?.headers["carillon-attempt"]).toBe("2");
    else expect(JSON.parse(`${last?.body}`).messages).toMatchObject(Array(batch).fill({ attempt: 2 }));
  },
);

/** What is delivered, once the first attempts are recorded; of what was replayed the replay only. */
async function deliveries(database: TestDatabase) {
  const { rows } = await sql<{
    readonly run_id: string;
    readonly replay_of: string | null;
    readonly message_id: string | null;
    readonly state: string;
    /** Until its next attempt, in seconds. */
    readonly due_in: number;
    readonly attempts: readonly { attempt: number; ended: boolean; status: number | null }[];
  }>`
    select r.run_id, r.replay_of, r.message_id, r.state, extract(epoch from r.run_at - carillon_now())::float8 as due_in,
      json_agg(json_build_object('attempt', a.attempt, 'ended', a.finished_at is not null, 'status', a.response_status)
               order by a.attempt) as attempts
    from runs r join attempts a using (project_id, run_id)
    where r.replay_of is not null or r.state <> 'failed'
    group by r.project_id, r.run_id`.execute(database.db);
  return rows;
}

/** A thread that listens, and then neither accepts nor does anything else until it is told to end. */
const WALL = `
  const { createServer } = require("node:net");
  const { parentPort, workerData } = require("node:worker_threads");
  const server = createServer().listen({ host: "127.0.0.1", port: 0, backlog: 1 }, () => {
    parentPort.postMessage(server.address().port);
    Atomics.wait(workerData, 0, 0);
    process.exit();
  });`;
/** Far more connections than the kernel lets wait for a backlog of one. */
const MOST_WAITING = 32;
/** A connection on loopback that takes longer is not being made, in milliseconds. */
const CONNECT_MS = 500;

interface Wall {
  readonly port: number;
  /** Whether a dial succeeds. */
  answers(): Promise<boolean>;
  /** Frees the port. */
  leave(): Promise<void>;
}

/** A port of loopback on which a dial gets no answer: as many connections wait to be accepted as may. */
async function startWall(): Promise<Wall> {
  const told = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(WALL, { eval: true, workerData: told });
  const ended = once(worker, "exit");
  const waiting: Socket[] = [];
  const leave = async (): Promise<void> => {
    Atomics.store(told, 0, 1);
    Atomics.notify(told, 0);
    for (const socket of waiting) socket.destroy();
    await ended;
  };
  onTestFinished(leave);
  const [port] = await once(worker, "message");
  const answers = async (): Promise<boolean> => {
    const socket = connectTcp({ host: "127.0.0.1", port }).on("error", () => {});
    waiting.push(socket);
    const connected = await once(socket, "connect", { signal: AbortSignal.timeout(CONNECT_MS) }).catch(() => undefined);
    if (connected === undefined) socket.destroy();
    return connected !== undefined;
  };
  while (await answers()) if (waiting.length >= MOST_WAITING) throw new Error("every dial is answered");
  return { port, answers, leave };
}
