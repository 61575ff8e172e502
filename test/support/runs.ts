import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Client, createClient, createRouterTransport, type Interceptor } from "@connectrpc/connect";
import { sql } from "kysely";
import { type CreateCronJobRequestSchema, type CronJob, CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { EndpointService } from "../../gen/scheduling/v1/endpoint_service_pb.js";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import type { Db, RunRow } from "../../src/db/schema.ts";
import { Wakeups } from "../../src/db/wakeups.ts";
import { Refusal } from "../../src/errors.ts";
import { createAppContext, principalKey } from "../../src/rpc/context.ts";
import { cronService } from "../../src/rpc/cron-service.ts";
import { endpointService } from "../../src/rpc/endpoint-service.ts";
import { toConnectError } from "../../src/rpc/refusal.ts";
import { taskService } from "../../src/rpc/task-service.ts";
import { ensureProject } from "../../src/store/projects.ts";
import { QueueTally } from "../../src/store/queue-tally.ts";
import { createEgress } from "../../src/webhook/post.ts";
import type { TargetPolicy } from "../../src/webhook/target.ts";
import { createDispatcher, type Dispatcher, type DispatcherOptions } from "../../src/worker/dispatcher.ts";
import { EndpointWatch } from "../../src/worker/endpoint-watch.ts";
import type { Tick } from "../../src/worker/loop.ts";
import { createRunReaper } from "../../src/worker/run-reaper.ts";
import { createScheduler } from "../../src/worker/scheduler.ts";
import { type TestDatabase, testDatabase } from "./database.ts";
import { type Receiver, startReceiver } from "./receiver.ts";
import { openSealed, signsWith, TEST_VAULT } from "./signing.ts";

/** Signs what has no secret of its own. */
export const PROJECT_SECRET = "a secret of the project";

/** Handlers and workers on a database of their own, with a receiver to deliver to. No loop runs: tests make the ticks. */
export interface RunWorld extends AsyncDisposable {
  readonly database: TestDatabase;
  readonly db: Db;
  readonly projectId: string;
  readonly cron: Client<typeof CronService>;
  readonly tasks: Client<typeof TaskService>;
  readonly endpoints: Client<typeof EndpointService>;
  readonly receiver: Receiver;
  readonly dispatcher: Dispatcher;
  /** What workers could not do. */
  readonly errors: unknown[];
  /** One more scheduler, as another node has it. */
  scheduler(): Tick;
  /** One more dispatcher, as another node has it. */
  newDispatcher(options?: Partial<DispatcherOptions>): Dispatcher;
  /** Fires every cron job that is due. */
  fire(): Promise<void>;
  /** Makes the attempts that are due, and those that become due by them, to their end. */
  dispatch(): Promise<void>;
  /** Writes down what was seen of endpoints. */
  flush(): Promise<void>;
  /** Takes back what dead nodes held. */
  reap(): Promise<void>;
  /** Every run there is, in order of its instant. */
  runs(): Promise<RunRow[]>;
}

const NEVER = new AbortController().signal;

/** `random` of 0.5 takes the jitter out of every wait. */
export async function runWorld(): Promise<RunWorld> {
  await using stack = new AsyncDisposableStack();
  const database = stack.use(await testDatabase());
  const { db } = database;
  const { project_id: projectId } = await ensureProject(db, "test", signsWith(PROJECT_SECRET));
  const receiver = stack.use(await startReceiver());
  const targets: TargetPolicy = { allowHttp: false, allowLoopback: true, allow: [] };
  const egress = stack.use(createEgress({ policy: targets, open: openSealed }));
  const wakeups = stack.use(new Wakeups(database.url));
  const errors: unknown[] = [];
  const onError = (error: unknown): void => void errors.push(error);
  const app = createAppContext({
    tally: new QueueTally(db),
    db,
    wakeups,
    targets,
    vault: TEST_VAULT,
    egress,
    limits: { maxPayloadBytes: 1_048_576, idempotencySeconds: 86_400, autoCreateQueues: true },
  });
  const transport = createRouterTransport(
    (router) => {
      router.service(CronService, cronService(app));
      router.service(TaskService, taskService(app));
      router.service(EndpointService, endpointService(app));
    },
    { router: { interceptors: [asProject(projectId)] } },
  );
  const watch = stack.use(new EndpointWatch({ db, wakeups, onFault: onError }));
  const newDispatcher = (options: Partial<DispatcherOptions> = {}): Dispatcher =>
    createDispatcher({ db, egress, watch, wakeups, onError, graceMs: 5_000, random: () => 0.5, ...options });
  const dispatcher = stack.use(newDispatcher());
  const scheduler = (): Tick => createScheduler({ db, wakeups, onError });
  const reaper = createRunReaper({ db, random: () => 0.5 });
  const untilIdle = async (tick: Tick, after: () => Promise<void> = async () => {}): Promise<void> => {
    for (let done = 1; done > 0; ) {
      ({ done } = await tick(NEVER));
      await after();
    }
  };

  const owned = stack.move();
  return {
    database,
    db,
    projectId,
    cron: createClient(CronService, transport),
    tasks: createClient(TaskService, transport),
    endpoints: createClient(EndpointService, transport),
    receiver,
    dispatcher,
    errors,
    scheduler,
    newDispatcher,
    fire: () => untilIdle(scheduler()),
    dispatch: () =>
      untilIdle(dispatcher.tick, async () => {
        await dispatcher.settled();
        await watch.flush();
      }),
    flush: () => watch.flush(),
    reap: () => untilIdle(reaper),
    runs: () => db.selectFrom("runs").selectAll().orderBy("fire_at").orderBy("run_id").execute(),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/**
 * Creates a cron job that POSTs to the receiver every minute, unless `job` says otherwise. The clock is put half a minute
 * before its fire time first, so that moving it by minutes passes as many fire times, none of which is on time.
 */
export async function createJob(
  world: RunWorld,
  job: MessageInitShape<typeof CreateCronJobRequestSchema> = {},
): Promise<CronJob> {
  const secondsPastMinute = ((await world.database.now()).getTime() / 1_000) % 60;
  await world.database.advanceClock(90 - secondsPastMinute);
  const { cronJob } = await world.cron.createCronJob({ cronExpr: "* * * * *", url: world.receiver.url, ...job });
  if (cronJob === undefined) throw new Error("no cron job");
  return cronJob;
}

/** Reads a cron job. */
export async function getJob(world: RunWorld, cronId: string): Promise<CronJob> {
  const { cronJob } = await world.cron.getCronJob({ cronId });
  if (cronJob === undefined) throw new Error("no cron job");
  return cronJob;
}

/** Makes copies of the one task that there is, each with a run that is due: in one statement, where thousands are needed. */
export async function copyTask({ db }: RunWorld, copies: number): Promise<void> {
  await sql`
    with copied as (
      insert into tasks (project_id, name, url, content_type, headers, retries, timeout_seconds, run_at, state)
      select project_id, name, url, content_type, headers, retries, timeout_seconds, run_at, state
      from tasks, generate_series(1, ${copies}::int) returning project_id, task_id, url, run_at)
    insert into runs (project_id, kind, task_id, endpoint_id, state, trigger, fire_at, run_at)
    select project_id, 'task', task_id, carillon_endpoint_id(url), 'pending', 'schedule', run_at, run_at
    from copied`.execute(db);
}

function asProject(projectId: string): Interceptor {
  return (next) => async (request) => {
    request.contextValues.set(principalKey, { projectId, strictPathBody: false, strictFields: false });
    try {
      return await next(request);
    } catch (error) {
      throw error instanceof Refusal ? toConnectError(error) : error;
    }
  };
}
