import { resolve } from "node:path";
import { parseArgs } from "node:util";

/** What the command line says. */
export interface Settings {
  /** Names of the scenarios to run; undefined for all. */
  readonly only: readonly string[] | undefined;
  /** How often each contestant has its turn. */
  readonly rounds: number;
  /** How long a turn is measured, in seconds, where a scenario has no other reason to end. */
  readonly seconds: number;
  /** Messages that are stored before they are drained. */
  readonly messages: number;
  /** Messages that wait in the deep queue. */
  readonly depth: number;
  /** How long the old snapshot is held open, in seconds. */
  readonly hold: number;
  readonly queues: number;
  readonly groups: number;
  readonly streams: number;
  /** Cron jobs whose next fire is far off. */
  readonly jobs: number;
  /** Where each Carillon leaves a profile of its processor time and its statements; undefined for none. */
  readonly profile: string | undefined;
  /** Whether the peers run as well, and Carillon with connect-node's own handlers. */
  readonly peers: boolean;
  /** The directory for the results, a file for each scenario; undefined for none. */
  readonly output: string | undefined;
}

const OPTIONS = {
  only: { type: "string", help: "scenarios to run, between commas" },
  rounds: { type: "string", default: "5", help: "how often each contestant has its turn" },
  seconds: { type: "string", default: "5", help: "length of a turn" },
  messages: { type: "string", default: "100000", help: "messages to drain" },
  depth: { type: "string", default: "10000000", help: "messages that wait in the deep queue" },
  hold: { type: "string", default: "60", help: "seconds for which the old snapshot is held" },
  queues: { type: "string", default: "10000", help: "queues in the database with many" },
  groups: { type: "string", default: "100000", help: "FIFO groups in the queue with many" },
  streams: { type: "string", default: "500", help: "idle streams" },
  jobs: { type: "string", default: "100000", help: "idle cron jobs" },
  "no-peers": { type: "boolean", default: false, help: "leave out the peers, and connect-node's handlers" },
  profile: { type: "string", help: "directory for profiles: processor time and statements" },
  output: { type: "string", default: "bench/results/latest", help: "directory for the results, or none" },
  help: { type: "boolean", default: false, help: "print this" },
} as const;

/** Reads the command line. Prints the options and answers undefined where they were asked for. */
export function readSettings(args: readonly string[], scenarios: readonly string[]): Settings | undefined {
  const { values } = parseArgs({ args: [...args], options: OPTIONS });
  if (values.help) {
    process.stdout.write(usage(scenarios));
    return undefined;
  }
  const only = values.only?.split(",");
  const unknown = only?.find((name) => !scenarios.includes(name));
  if (unknown !== undefined) throw new Error(`there is no scenario ${unknown}: ${scenarios.join(", ")}`);
  const whole = (
    name: "rounds" | "seconds" | "messages" | "depth" | "hold" | "queues" | "groups" | "streams" | "jobs",
  ) => {
    const value = Number(values[name]);
    if (!Number.isInteger(value) || value < 1) throw new Error(`--${name} must be a whole number above 0`);
    return value;
  };
  return {
    only,
    rounds: whole("rounds"),
    seconds: whole("seconds"),
    messages: whole("messages"),
    depth: whole("depth"),
    hold: whole("hold"),
    queues: whole("queues"),
    groups: whole("groups"),
    streams: whole("streams"),
    jobs: whole("jobs"),
    peers: !values["no-peers"],
    profile: values.profile === undefined ? undefined : resolve(values.profile),
    output: values.output === "none" ? undefined : values.output,
  };
}

function usage(scenarios: readonly string[]): string {
  const lines = Object.entries(OPTIONS).map(([name, option]) => {
    const fallback = option.type === "string" && "default" in option ? ` (${option.default})` : "";
    return `  --${name.padEnd(10)} ${option.help}${fallback}\n`;
  });
  return `npm run bench -- [options]\n\n${lines.join("")}\nScenarios: ${scenarios.join(", ")}\n`;
}
