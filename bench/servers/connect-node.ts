/**
 * A node in development mode whose unary calls all take connect-node's own handlers, to be measured against. It prints
 * its address when it is ready.
 */
import { loadConfig } from "../../src/config.ts";
import { createLogger } from "../../src/log.ts";
import { startCarillon } from "../../src/main.ts";

const config = loadConfig(process.env, { mode: "development" });
const log = createLogger({ level: config.logLevel, pretty: false });
const carillon = await startCarillon(config, log, { shortWay: false });
process.stdout.write(`http://127.0.0.1:${carillon.address.port}/v1/scheduling\n`);
process.once("SIGTERM", () => void carillon[Symbol.asyncDispose]());
