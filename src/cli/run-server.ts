import type { Config } from "../config.ts";
import type { Logger } from "../log.ts";
import { type Carillon, startCarillon } from "../main.ts";

/** How long after the grace everything has to have stopped, in milliseconds. */
const LATE_MS = 15_000;

/**
 * How long after a signal another one is taken for the same, in milliseconds. Ctrl-C reaches npm and the server alike,
 * and npm passes its own on.
 */
const SAME_SIGNAL_MS = 500;

/**
 * Runs the server until SIGTERM or SIGINT, then drains it; resolves with the exit code. A second signal ends the process
 * at once, and so does a fault that nobody handles: what is left is then in an unknown state.
 */
export async function runServer(config: Config, log: Logger, onReady: (carillon: Carillon) => void): Promise<number> {
  const signalled = Promise.withResolvers<NodeJS.Signals>();
  let ready = false;
  let askedAt: number | undefined;
  const onSignal = (signal: NodeJS.Signals): void => {
    // While it starts there is nothing to drain; the embedded PostgreSQL ends with this process.
    if (askedAt !== undefined && performance.now() - askedAt < SAME_SIGNAL_MS) return;
    if (askedAt !== undefined || !ready) {
      log.warn({ signal }, "ended at once");
      process.exit(128 + (signal === "SIGINT" ? 2 : 15));
    }
    askedAt = performance.now();
    signalled.resolve(signal);
  };
  process.on("SIGTERM", onSignal);
  process.on("SIGINT", onSignal);
  const onCrash = (error: unknown): void => {
    log.fatal({ err: error }, "a fault that nobody handled");
    process.exit(1);
  };
  process.on("uncaughtException", onCrash);
  process.on("unhandledRejection", onCrash);

  const carillon = await startCarillon(config, log);
  ready = true;
  onReady(carillon);
  const end = await Promise.race([
    signalled.promise.then((signal) => ({ signal, error: undefined })),
    carillon.failed.then((error) => ({ signal: undefined, error })),
  ]);
  if (end.error !== undefined) {
    log.fatal({ err: end.error }, "stopping");
    await carillon[Symbol.asyncDispose]();
    return 1;
  }
  log.info({ signal: end.signal, grace_seconds: config.shutdownGraceSeconds }, "draining");
  const late = setTimeout(
    () => {
      log.error("it did not stop in time; ended at once");
      process.exit(1);
    },
    config.shutdownGraceSeconds * 1_000 + LATE_MS,
  );
  await carillon.drain();
  clearTimeout(late);
  log.info("stopped");
  return 0;
}

/** Where the server can be reached from this machine: `http://127.0.0.1:7070`. */
export function baseUrl({ host, port, tls }: Carillon["address"]): string {
  const name = host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "[::1]" : host.includes(":") ? `[${host}]` : host;
  return `${tls ? "https" : "http"}://${name}:${port}`;
}
