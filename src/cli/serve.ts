import { loadCheckedConfig, serverLogger } from "./load-config.ts";
import { runServer } from "./run-server.ts";

/** `carillon serve`: production. Resolves with the exit code. */
export async function serve(): Promise<number> {
  const config = loadCheckedConfig("production");
  const log = serverLogger(config);
  return runServer(config, log, ({ address }) => log.info({ ...address, role: config.role }, "ready"));
}
