import type { Connection } from "../api/client.ts";
import type { Fields } from "../api/pages.ts";
import { CommandError, exitCodeFor } from "../failure.ts";
import { type Change, changesOf, type DiffOptions } from "./diff.ts";
import { EnvironmentText } from "./environment-text.ts";
import type { Declared } from "./file.ts";
import type { Kind } from "./kinds.ts";
import type { Plan, Step } from "./plan.ts";
import { JsonPayload } from "./read-value.ts";
import { write } from "./server.ts";

const DONE = { create: "created", update: "updated", delete: "deleted" } as const;

/**
 * Does the steps of a plan, one after the other, and tells of each.
 *
 * @throws CommandError at the first that is refused, with what was not done.
 */
export async function applyPlan(connection: Connection, { steps }: Plan, options: DiffOptions): Promise<void> {
  for (const [index, step] of steps.entries()) {
    try {
      await applyStep(connection, step, options);
    } catch (error) {
      if (!(error instanceof CommandError)) throw error;
      const left = steps.slice(index + 1).map(({ what, label }) => `  ${what} ${label}`);
      const rest = left.length === 0 ? ["nothing was left to do after it"] : ["and so this was not done:", ...left];
      const text = [`${step.label} was not ${DONE[step.what]}: ${error.message}`, ...rest].join("\n");
      throw new CommandError(text, { cause: error, exitCode: exitCodeFor(error) });
    }
    console.log(`${DONE[step.what]} ${step.label}`);
  }
}

async function applyStep(connection: Connection, step: Step, options: DiffOptions): Promise<void> {
  switch (step.what) {
    case "create":
      return create(connection, step.declared, options);
    case "update":
      return change(connection, step.declared, step.record, step.changes, options);
    case "delete":
      await write(connection, step.kind.remove, addressOf(step.kind, step.record));
  }
}

/** Creates a thing, and then changes what the call that creates has no field for. */
async function create(connection: Connection, declared: Declared, options: DiffOptions): Promise<void> {
  const { kind, values } = declared;
  const request = new Map<string, string>();
  for (const { name, inCreate } of kind.fields) {
    const value = values.get(name);
    if (inCreate && value !== undefined && value !== null) request.set(name, jsonOf(value, options));
  }
  const record = await write(connection, kind.create, request);
  const left = changesOf(declared, record, { ...options, secrets: false }).filter(({ field }) => !field.inCreate);
  if (left.length > 0) await change(connection, declared, record, left, options);
}

async function change(
  connection: Connection,
  { kind, values }: Declared,
  record: Fields,
  changes: readonly Change[],
  options: DiffOptions,
): Promise<void> {
  const address = addressOf(kind, record);
  const together = changes.filter(({ field }) => field.change === "update");
  if (together.length > 0) {
    const fields = together.map(({ field }): [string, string] => [field.name, jsonOf(values.get(field.name), options)]);
    await write(connection, kind.update, new Map([...address, ...fields]));
  }
  for (const { field } of changes) {
    if (field.change === undefined || field.change === "update") continue;
    const value = values.get(field.name);
    const { call, takesValue } = field.change.callFor(value);
    const own: [string, string][] = takesValue ? [[field.name, jsonOf(value, options)]] : [];
    await write(connection, call, new Map([...address, ...own]));
  }
}

function addressOf(kind: Kind, record: Fields): Map<string, string> {
  return new Map([[kind.id, JSON.stringify(record[kind.id])]]);
}

/** A value as it is sent, with what the environment says in it. */
function jsonOf(value: unknown, { variable }: DiffOptions): string {
  if (value instanceof JsonPayload) return value.json;
  return JSON.stringify(value, (_, inner) => (inner instanceof EnvironmentText ? inner.resolve(variable) : inner));
}
