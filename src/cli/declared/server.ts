import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { type Arguments, type Connection, callUnary } from "../api/client.ts";
import type { Call } from "../api/contract.ts";
import { parseExactly } from "../api/exact-json.ts";
import { callPages, type Fields } from "../api/pages.ts";
import { CommandError, EXIT } from "../failure.ts";
import type { Kind } from "./kinds.ts";

/** Most things of one kind that are read; a project with more is not described by one file. */
const MAX_THINGS = 100_000;
/** How often a write that was not answered is sent again, and how long before, in milliseconds. */
const RETRIES = 3;
const RETRY_AFTER_MS = 500;

/** Reads all things of a kind, those below others (the subscriptions of a queue) for each of `queues`. */
export async function readAll(
  connection: Connection,
  kind: Kind,
  queues: readonly string[],
): Promise<readonly Fields[]> {
  const places = kind.list.inPath.length === 0 ? [[]] : queues.map((queue) => [queue]);
  const things: Fields[] = [];
  for (const inPath of places) {
    const args = { inPath, fields: [["limit", "500"]] } as const;
    const { items, cursor } = await callPages(connection, kind.list, args, MAX_THINGS);
    if (cursor !== undefined) throw new CommandError(`there are more than ${MAX_THINGS} of ${kind.section}`);
    things.push(...items);
  }
  return things;
}

/**
 * Makes a call that writes. One that is not answered is made again under the same idempotency key, so it takes effect once.
 *
 * @param values by the names of the call's fields, as JSON text. Those in the path go there.
 */
export async function write(connection: Connection, call: Call, values: ReadonlyMap<string, string>): Promise<Fields> {
  const inPath = call.inPath.map(({ name }) => String(JSON.parse(values.get(name) ?? '""')));
  const named = [...values].filter(([name]) => !call.inPath.some((field) => field.name === name));
  const args: Arguments = { inPath, fields: [...named, ["idempotency_key", JSON.stringify(randomUUID())]] };
  for (let attempt = 0; ; attempt++) {
    try {
      return parseExactly(await callUnary(connection, call, args)) as Fields;
    } catch (error) {
      const isWorthIt = error instanceof CommandError && error.exitCode === EXIT.unreachable && attempt < RETRIES;
      if (!isWorthIt) throw error;
      await pause(RETRY_AFTER_MS * 2 ** attempt);
    }
  }
}
