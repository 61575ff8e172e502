import { readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { type ConnectRouterOptions, createConnectRouter, createContextValues } from "@connectrpc/connect";
import { type Config, dataHome } from "./config.ts";
import { connect } from "./db/connect.ts";
import { ping } from "./db/server-state.ts";
import { keptFile, openStorage } from "./db/storage.ts";
import { Wakeups } from "./db/wakeups.ts";
import { developmentProject } from "./development-project.ts";
import { Refusal } from "./errors.ts";
import { createApp } from "./http/app.ts";
import { healthRoutes } from "./http/health.ts";
import { type NodeHandler, type OnePortServer, startOnePort } from "./http/one-port.ts";
import { createReadinessCheck } from "./http/readiness.ts";
import { reflectionRoutes } from "./http/reflection.ts";
import type { Logger } from "./log.ts";
import { logDurability, migrateWhenReady, sealStoredSecrets, settleClock } from "./ready-database.ts";
import type { RestResponse } from "./rest/headers.ts";
import { createRestHandler } from "./rest/transcode.ts";
import { callOptions, principalOf, requestLimit } from "./rpc/call-options.ts";
import { createAppContext, principalKey } from "./rpc/context.ts";
import { faceKey } from "./rpc/interceptors/access-log.ts";
import { toConnectError } from "./rpc/refusal.ts";
import { REFLECTED_SERVICES, routes, SERVICES } from "./rpc/routes.ts";
import { findKeyOwner } from "./store/api-keys.ts";
import { getProject } from "./store/projects.ts";
import { setPublishLimits } from "./store/publish-limits.ts";
import { QueueTally } from "./store/queue-tally.ts";
import { unaryMethods } from "./unary/registry.ts";
import { openVault, VAULT_FILE } from "./vault/keys.ts";
import { createEgress } from "./webhook/post.ts";
import { parseAllowList, parseNat64Prefixes, type TargetPolicy } from "./webhook/target.ts";
import { startWorkers } from "./worker/start.ts";

/** Where REST paths may begin short: `/cron/list` is `/v1/scheduling/cron/list`. */
const BASE_PATH = "/v1/scheduling";
/** How long the workers, the pool and the LISTEN connection may each take to close, in milliseconds. */
const CLOSE_MS = 5_000;
/** What is left of the grace when work in hand is cut off, so that its outcome can be recorded, in milliseconds. */
const RECORD_MS = 3_000;

/** A running Carillon. Disposing it stops it at once, `drain` with grace. */
export interface Carillon extends AsyncDisposable {
  readonly address: OnePortServer["address"];
  /** The embedded server's data directory; undefined with a server of the operator's. */
  readonly dataDir: string | undefined;
  /** Where the clock stands, if it is virtual. */
  readonly clockAt: Date | undefined;
  /** In development mode, the key that opens the project `default`. */
  readonly developmentKey: string | undefined;
  /** Resolves with the reason when it cannot go on: the embedded server has ended by itself. */
  readonly failed: Promise<Error>;
  /**
   * Stops taking calls and work, lets what runs finish for the configured grace at most, and stops everything in the
   * reverse order of starting. Later calls join the first.
   */
  drain(): Promise<void>;
}

/** How to start it otherwise than a server should be, for tests and benchmarks. */
export interface StartOptions {
  /** Whether unary calls take the short way of src/unary/. Without it connect-node's own handlers answer them all. */
  readonly shortWay?: boolean;
}

/**
 * Starts everything: database, schema, workers, port.
 *
 * @throws Error with one line for the operator when something cannot be started; what was started is stopped again.
 */
export async function startCarillon(
  config: Config,
  log: Logger,
  { shortWay = true }: StartOptions = {},
): Promise<Carillon> {
  await using cleanup = new AsyncDisposableStack();
  const shutdown = new AbortController();
  const onFault = (fault: unknown, about: object = {}) => log.error({ err: fault, ...about }, "fault");
  const tls = await readTlsFiles(config);

  const storage = cleanup.use(
    await openStorage({
      databaseUrl: config.databaseUrl?.reveal(),
      dataDir: config.dataDir,
      dataHome: dataHome(),
      virtualClock: config.virtualClock,
      log: (line) => logServerLine(log, line),
    }),
  );
  const db = connect({
    url: storage.url,
    poolSize: config.databasePoolSize,
    preparedStatements: config.preparedStatements,
    // What is simulated is not worth waiting for the disk.
    simulation: config.virtualClock,
    onError: (error) => log.warn({ err: error }, "a database connection broke; the pool replaces it"),
  });
  cleanup.defer(() => withinMs(db.destroy(), CLOSE_MS));
  await migrateWhenReady(db, log);
  const clockAt = await settleClock(db, config, log);
  await logDurability(db, log);
  await setPublishLimits(db, config);
  const vault = await openVault(config, () => keptFile(storage.dataDir, dataHome(), VAULT_FILE));
  await sealStoredSecrets(db, vault, log);
  const development =
    config.mode === "development" ? await developmentProject(db, vault, config, storage.dataDir) : undefined;

  const tally = new QueueTally(db);
  cleanup.defer(() => withinMs(tally[Symbol.asyncDispose](), CLOSE_MS));
  const wakeups = new Wakeups(storage.url, { alone: clockAt !== undefined });
  cleanup.defer(() => withinMs(wakeups[Symbol.asyncDispose](), CLOSE_MS));
  const ownAddresses = [{ host: config.host, port: config.port }];
  const targets: TargetPolicy = {
    allowHttp: config.allowHttpTargets,
    allowLoopback: config.mode === "development",
    allow: parseAllowList(config.allowTargets),
    nat64: parseNat64Prefixes(config.nat64Prefixes),
    ownAddresses,
  };
  const egress = cleanup.use(
    createEgress({
      policy: targets,
      open: (sealed, place) => vault.openText(sealed, place),
      onRefused: ({ url, owner: { projectId } }, cause) =>
        log.info({ url, project_id: projectId, err: cause }, "a request was not sent"),
      ownTime: clockAt !== undefined,
    }),
  );
  const graceMs = config.shutdownGraceSeconds * 1_000;
  const workers =
    config.role === "api"
      ? undefined
      : startWorkers({
          db,
          wakeups,
          tally,
          egress,
          concurrency: config.dispatchConcurrency,
          deliveryLogDays: config.deliveryLogDays,
          graceMs: Math.max(0, graceMs - RECORD_MS),
          onFault,
        });
  cleanup.defer(async () => {
    // Without grace, requests under way are cut off, which leaves the workers only their outcomes to record.
    await withinMs(Promise.all([egress[Symbol.asyncDispose](), workers?.[Symbol.asyncDispose]()]), CLOSE_MS);
  });

  const checkReadiness = createReadinessCheck({
    ready: async () => {
      await ping(db);
      return { ok: true, detail: { database: "ok" } };
    },
    shutdownSignal: shutdown.signal,
  });
  const app = createAppContext({
    db,
    wakeups,
    targets,
    egress,
    tally,
    vault,
    moveClock:
      clockAt === undefined || workers === undefined
        ? undefined
        : (targetOf, bounds) => workers.clock.move(targetOf, bounds),
    limits: {
      maxPayloadBytes: config.maxPayloadBytes,
      idempotencySeconds: config.idempotencyTtlSeconds,
      autoCreateQueues: config.autoCreateQueues,
    },
  });
  const options = callOptions(config, log, {
    shutdownSignal: shutdown.signal,
    onFault,
    developmentKey: development?.key,
    findPrincipal: async (keyHash) => {
      if (development?.keyHash.equals(keyHash)) return principalOf(await getProject(db, development.projectId));
      return principalOf(await findKeyOwner(db, keyHash));
    },
  });
  const serveApi = config.role === "worker" ? () => {} : routes(app);
  const restOptions: ConnectRouterOptions = {
    ...options,
    grpc: false,
    grpcWeb: false,
    // A REST body is checked before it becomes the message that this limit is for, which may be larger.
    readMaxBytes: 2 * requestLimit(config),
  };
  const restRouter = createConnectRouter(restOptions);
  serveApi(restRouter);

  const port = await startOnePort({
    host: config.host,
    port: config.port,
    ...(tls !== undefined && { tls }),
    onFault,
    ...createApp({
      routes: (router) => {
        serveApi(router);
        healthRoutes({ services: SERVICES, checkReadiness, shutdownSignal: shutdown.signal })(router);
        reflectionRoutes(REFLECTED_SERVICES)(router);
      },
      connect: options,
      shortWay,
      rest: toNodeHandler(
        createRestHandler({
          handlers: restRouter.handlers,
          ...(shortWay && { unary: unaryMethods(serveApi, restOptions) }),
          contextValues: () => createContextValues().set(faceKey, "rest"),
          basePath: BASE_PATH,
          maxBodyBytes: requestLimit(config),
          strict: (values) => {
            const principal = values.get(principalKey);
            return { pathBody: principal?.strictPathBody ?? false, unknownFields: principal?.strictFields ?? false };
          },
          onFault: (fault, { requestId }) => onFault(fault, { request_id: requestId }),
        }),
      ),
      checkReadiness,
      cors: { allowedOrigins: config.corsOrigins ?? [], allowLoopback: config.mode === "development" },
      onFault,
    }),
  });
  cleanup.use(port);
  // Port 0 means any free one: this is the one.
  ownAddresses.push({ host: config.host, port: port.address.port });

  const owned = cleanup.move();
  let stopped: Promise<void> | undefined;
  const stop = (withGrace: boolean) => {
    stopped ??= (async () => {
      shutdown.abort(toConnectError(new Refusal("SHUTTING_DOWN")));
      if (withGrace) {
        const idle = Promise.all([port.drain(graceMs), workers?.[Symbol.asyncDispose]()]);
        // A worker that waits for a database which does not answer must not hold this up.
        await withinMs(idle, graceMs);
      }
      await owned.disposeAsync();
    })();
    return stopped;
  };
  return {
    address: port.address,
    dataDir: storage.dataDir,
    clockAt,
    developmentKey: development?.key,
    failed: storage.ended.then(async () => {
      if (stopped !== undefined) return new Promise<never>(() => {});
      return new Error("the embedded PostgreSQL has ended by itself; its last lines are above");
    }),
    drain: () => stop(true),
    [Symbol.asyncDispose]: () => stop(false),
  };
}

/** The two types of a response differ in the declared argument of a callback only. */
function toNodeHandler(rest: ReturnType<typeof createRestHandler>): NodeHandler {
  return (request, response) => rest(request, response as RestResponse);
}

async function readTlsFiles({ tlsCertFile, tlsKeyFile }: Config): Promise<{ cert: Buffer; key: Buffer } | undefined> {
  if (tlsCertFile === undefined || tlsKeyFile === undefined) return undefined;
  const [cert, key] = await Promise.all([
    readNamedFile("CARILLON_TLS_CERT_FILE", tlsCertFile),
    readNamedFile("CARILLON_TLS_KEY_FILE", tlsKeyFile),
  ]);
  return { cert, key };
}

async function readNamedFile(setting: string, path: string): Promise<Buffer> {
  return readFile(path).catch((error: Error) => {
    throw new Error(`${setting}: ${error.message}`, { cause: error });
  });
}

/** PostgreSQL's own lines: quiet unless they tell of trouble. */
function logServerLine(log: Logger, line: string): void {
  const about = { from: "postgres" };
  if (/\b(FATAL|PANIC)\b/.test(line)) log.warn(about, line);
  else log.debug(about, line);
}

/** Waits for `closing`, for `ms` at most, and for its failure no more than for its success. */
async function withinMs(closing: Promise<unknown>, ms: number): Promise<void> {
  const timer = new AbortController();
  await Promise.race([closing.catch(() => {}), delay(ms, undefined, { signal: timer.signal })]);
  timer.abort();
}
