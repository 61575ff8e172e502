import { type Config, type Environment, loadProcessConfig, type Mode } from "../config.ts";
import { createLogger, type Logger } from "../log.ts";
import { parseAllowList, parseNat64Prefixes } from "../webhook/target.ts";

/**
 * The settings of this process, with the checks that need more than the text of a variable. `given` are those that the
 * command line gives instead of the environment.
 *
 * @throws ConfigError
 */
export function loadCheckedConfig(mode: Mode, given: Environment = {}): Config {
  const checks = {
    allowTargets: (list: string) => {
      parseAllowList(list);
    },
    nat64Prefixes: (prefixes: string) => {
      parseNat64Prefixes(prefixes);
    },
  };
  return loadProcessConfig({ mode, checks }, given);
}

/** Options of the commands that serve. */
export interface ServeOptions {
  readonly virtualClock?: true;
}

/** The settings that the options of a command that serves stand for. */
export function settingsOf({ virtualClock }: ServeOptions): Environment {
  return virtualClock === true ? { CARILLON_VIRTUAL_CLOCK: "on" } : {};
}

/** The logger of a server, which writes to standard output. */
export function serverLogger(config: Config): Logger {
  const forPeople = config.mode === "development" && process.stdout.isTTY;
  const pretty = config.logFormat === "pretty" || (config.logFormat === "auto" && forPeople);
  const log = createLogger({ level: config.logLevel, pretty });
  for (const warning of config.warnings) log.warn(warning);
  return log;
}
