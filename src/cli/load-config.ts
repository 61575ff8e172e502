import { type Config, loadProcessConfig, type Mode } from "../config.ts";
import { createLogger, type Logger } from "../log.ts";
import { parseAllowList } from "../webhook/target.ts";

/** The settings of this process, with the checks that need more than the text of a variable. @throws ConfigError */
export function loadCheckedConfig(mode: Mode): Config {
  return loadProcessConfig({
    mode,
    checks: {
      allowTargets: (list) => {
        parseAllowList(list);
      },
    },
  });
}

/** The logger of a server, which writes to standard output. */
export function serverLogger(config: Config): Logger {
  const forPeople = config.mode === "development" && process.stdout.isTTY;
  const pretty = config.logFormat === "pretty" || (config.logFormat === "auto" && forPeople);
  const log = createLogger({ level: config.logLevel, pretty });
  for (const warning of config.warnings) log.warn(warning);
  return log;
}
