import { loadCheckedConfig, type ServeOptions, serverLogger, settingsOf } from "./load-config.ts";
import { runServer } from "./run-server.ts";

/** `carillon serve`: production. Resolves with the exit code. */
export async function serve(options: ServeOptions = {}): Promise<number> {
  const config = loadCheckedConfig("production", settingsOf(options));
  const log = serverLogger(config);
  return runServer(config, log, ({ address }) => log.info({ ...address, role: config.role }, "ready"));
}
