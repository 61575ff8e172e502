import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findProgram, freePort, startProgram } from "./processes.ts";

export interface RabbitmqServer extends AsyncDisposable {
  readonly url: string;
}

/**
 * Starts a RabbitMQ with its own Erlang port mapper, all of it in a temporary directory, or answers undefined where
 * none is installed.
 */
export async function startRabbitmq(): Promise<RabbitmqServer | undefined> {
  // The plain script: Debian's wrapper on the PATH changes the account.
  const program = await findProgram("rabbitmq-server", ["/usr/lib/rabbitmq/bin"]).then((found) =>
    found?.startsWith("/usr/sbin/") ? "/usr/lib/rabbitmq/bin/rabbitmq-server" : found,
  );
  const epmd = await findProgram("epmd");
  if (program === undefined || epmd === undefined) return undefined;

  await using cleanup = new AsyncDisposableStack();
  const dir = await mkdtemp(join(tmpdir(), "carillon-bench-rabbitmq-"));
  cleanup.defer(() => rm(dir, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 }));
  const [port, epmdPort, distributionPort] = [await freePort(), await freePort(), await freePort()];
  const config = join(dir, "rabbitmq.conf");
  await writeFile(config, `listeners.tcp.1 = 127.0.0.1:${port}\n`);
  const env = {
    HOME: dir,
    ERL_EPMD_PORT: `${epmdPort}`,
    ERL_EPMD_ADDRESS: "127.0.0.1",
    RABBITMQ_NODENAME: `bench${process.pid}@localhost`,
    RABBITMQ_DIST_PORT: `${distributionPort}`,
    RABBITMQ_MNESIA_BASE: join(dir, "data"),
    RABBITMQ_LOG_BASE: join(dir, "log"),
    RABBITMQ_LOGS: "-",
    RABBITMQ_PID_FILE: join(dir, "pid"),
    RABBITMQ_ENABLED_PLUGINS_FILE: join(dir, "plugins"),
    RABBITMQ_CONFIG_FILE: config,
    RABBITMQ_CONF_ENV_FILE: "/dev/null",
  };
  cleanup.use(
    await startProgram(epmd, ["-d", "-port", `${epmdPort}`], { env, readyLine: /epmd running/, startMs: 10_000 }),
  );
  cleanup.use(await startProgram(program, [], { env, readyLine: /Server startup complete/, startMs: 60_000 }));
  const owned = cleanup.move();
  return { url: `amqp://guest:guest@127.0.0.1:${port}`, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
