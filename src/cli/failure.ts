import { ConfigError } from "../config.ts";
import { scrubUrls } from "../log.ts";

/** How a command ends. 2 is also how `carillon plan --detailed-exitcode` tells that there is something to do. */
export const EXIT = { ok: 0, refused: 1, usage: 2, unreachable: 3 } as const;

/** A command cannot do what it was asked to. The message is for the person who asked, in one line where it can be. */
export class CommandError extends Error {
  override readonly name = "CommandError";
  readonly exitCode: number;

  constructor(message: string, { exitCode = EXIT.refused, ...options }: ErrorOptions & { exitCode?: number } = {}) {
    super(message, options);
    this.exitCode = exitCode;
  }
}

/** The exit code for whatever ended a command. */
export function exitCodeFor(error: unknown): number {
  return error instanceof CommandError ? error.exitCode : EXIT.refused;
}

/** What to print for whatever ended a command: no stack, no secrets; every bad setting on a line of its own. */
export function failureText(error: unknown): string {
  if (error instanceof ConfigError) {
    const list = error.problems.map((problem) => `  ${problem}`).join("\n");
    return `carillon: these settings cannot be used:\n${list}\nSee carillon config for all settings.`;
  }
  return `carillon: ${scrubUrls(messageOf(error))}`;
}

function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  // Several addresses of one name are tried, and each failure is in `errors`.
  if (error instanceof AggregateError && error.message === "") return messageOf(error.errors[0]);
  return error.message || error.name;
}
