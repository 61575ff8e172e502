import { ConfigError } from "../config.ts";
import { scrubUrls } from "../log.ts";

/** A command cannot do what it was asked to. The message is one line for the person who asked. */
export class CommandError extends Error {
  override readonly name = "CommandError";
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
