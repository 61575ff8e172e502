import { styleText } from "node:util";
import type { Connection } from "../api/client.ts";
import type { Fields } from "../api/pages.ts";
import { CommandError } from "../failure.ts";
import { type Change, changesOf, type DiffOptions, shown } from "./diff.ts";
import { EnvironmentText } from "./environment-text.ts";
import { type Declaration, type Declared, identityOf, labelOf } from "./file.ts";
import type { Kind } from "./kinds.ts";
import { readAll } from "./server.ts";

/** What is to be done to one thing. */
export type Step =
  | { readonly what: "create"; readonly label: string; readonly declared: Declared }
  | {
      readonly what: "update";
      readonly label: string;
      readonly declared: Declared;
      readonly record: Fields;
      readonly changes: readonly Change[];
    }
  | { readonly what: "delete"; readonly label: string; readonly kind: Kind; readonly record: Fields };

export interface Plan {
  /** In an order in which they can be done. */
  readonly steps: readonly Step[];
  /** How many things are as declared. */
  readonly unchanged: number;
}

export interface PlanOptions extends DiffOptions {
  /** Whether what the file does not declare is deleted, of the kinds that it has a section for. */
  readonly prune: boolean;
}

/**
 * Compares what is declared with what a server has.
 *
 * @throws CommandError with everything that cannot be done: ambiguous names, fields that cannot be changed, variables
 * that are not set.
 */
export async function makePlan(
  connection: Connection,
  kinds: readonly Kind[],
  { kinds: declaredKinds, things }: Declaration,
  options: PlanOptions,
): Promise<Plan> {
  const problems: string[] = [];
  const creates: Step[] = [];
  const updates: Step[] = [];
  const deletes: Step[] = [];
  let unchanged = 0;
  const queues = await queueNames(connection, kinds);
  for (const kind of kinds) {
    if (!declaredKinds.has(kind)) continue;
    const mine = things.filter((thing) => thing.kind === kind);
    const asked = options.prune
      ? queues
      : queues.filter((queue) => mine.some(({ values }) => values.get("queue") === queue));
    const records = await readAll(connection, kind, asked);
    const matched = new Set<Fields>();
    for (const declared of mine) {
      const label = labelOf(kind, (name) => declared.values.get(name));
      const record = recordOf(declared, records, label, problems);
      if (record === undefined) {
        problems.push(
          ...missingVariables(
            declared,
            kind.fields.map(({ name }) => name),
            label,
            options,
          ),
        );
        creates.push({ what: "create", label, declared });
        continue;
      }
      matched.add(record);
      const changes = changesOf(declared, record, options);
      for (const { field, from, to } of changes) {
        if (field.change === undefined)
          problems.push(`${label}: ${field.name} cannot be changed (${from} -> ${to}): delete it first`);
      }
      problems.push(
        ...missingVariables(
          declared,
          changes.map(({ field }) => field.name),
          label,
          options,
        ),
      );
      if (changes.length === 0) unchanged += 1;
      else updates.push({ what: "update", label, declared, record, changes });
    }
    if (!options.prune) continue;
    for (const record of records.filter((candidate) => !matched.has(candidate))) {
      deletes.push({ what: "delete", label: labelOf(kind, (name) => record[name]), kind, record });
    }
  }
  if (problems.length > 0)
    throw new CommandError(`this cannot be applied:\n${problems.map((line) => `  ${line}`).join("\n")}`);
  // What others name is there before them and goes after them, and no reference is left to what is deleted.
  const ordered = [...deadLettersFirst(creates), ...updates, ...deadLettersFirst(deletes).toReversed()];
  return { steps: ordered, unchanged };
}

/** The plan for people. */
export function planText({ steps, unchanged }: Plan, colored: boolean): string {
  const paint = (color: "green" | "yellow" | "red", text: string) => (colored ? styleText(color, text) : text);
  const lines = steps.flatMap((step) => {
    if (step.what === "delete") return [paint("red", `- ${`${step.label} ${step.kind.loss}`.trim()}`)];
    if (step.what === "update") {
      const fields = step.changes.map(({ field, from, to }) => `    ${field.name}: ${from} -> ${to}`);
      return [paint("yellow", `~ ${step.label}`), ...fields];
    }
    const { kind, values } = step.declared;
    const fields = [...values].filter(([name]) => !kind.identity.includes(name));
    return [paint("green", `+ ${step.label}`), ...fields.map(([name, value]) => `    ${name}: ${shown(value)}`)];
  });
  const count = (what: Step["what"]) => steps.filter((step) => step.what === what).length;
  const sum = `${count("create")} to create, ${count("update")} to update, ${count("delete")} to delete, ${unchanged} as declared`;
  return [...lines, ...(lines.length > 0 ? [""] : []), sum].join("\n");
}

/** The names of all queues: subscriptions are listed by queue. */
export async function queueNames(connection: Connection, kinds: readonly Kind[]): Promise<readonly string[]> {
  const queues = kinds.find(({ section }) => section === "queues");
  if (queues === undefined) return [];
  return (await readAll(connection, queues, [])).map((queue) => String(queue["queue"]));
}

function recordOf(
  { kind, values, id, line }: Declared,
  records: readonly Fields[],
  label: string,
  problems: string[],
): Fields | undefined {
  if (id !== undefined) {
    const record = records.find((candidate) => candidate[kind.id] === id);
    if (record === undefined)
      problems.push(`${label} (line ${line}): there is no ${id}; without ${kind.id} a new one is created`);
    return record;
  }
  const identity = identityOf(kind, (name) => values.get(name));
  const same = records.filter((record) => identityOf(kind, (name) => record[name]) === identity);
  if (same.length > 1) {
    const ids = same.map((record) => record[kind.id]).join(", ");
    problems.push(`${label} (line ${line}): there are ${same.length} of them (${ids}): say which by ${kind.id}`);
  }
  return same[0];
}

function missingVariables(
  { values, line }: Declared,
  fields: readonly string[],
  label: string,
  { variable }: DiffOptions,
): string[] {
  const texts = fields.flatMap((field) => {
    const value = values.get(field);
    return value instanceof EnvironmentText
      ? [value]
      : Object.values(value ?? {}).filter((item) => item instanceof EnvironmentText);
  });
  const missing = texts.flatMap(({ names }) => names).filter((name) => variable(name) === undefined);
  return [...new Set(missing)].map((name) => `${label} (line ${line}): the variable ${name} is not set`);
}

/** The steps with a queue that takes dead letters before those whose dead letters it takes. */
function deadLettersFirst(steps: readonly Step[]): Step[] {
  const ordered: Step[] = [];
  const waiting = new Set(steps);
  const place = (step: Step): void => {
    if (!waiting.delete(step)) return;
    const target = fieldOf(step, "dead_letter_queue");
    for (const other of [...waiting]) if (isQueue(other) && fieldOf(other, "queue") === target) place(other);
    ordered.push(step);
  };
  for (const step of steps) place(step);
  return ordered;
}

function fieldOf(step: Step, name: string): unknown {
  return step.what === "delete" ? step.record[name] : step.declared.values.get(name);
}

function isQueue(step: Step): boolean {
  return (step.what === "delete" ? step.kind : step.declared.kind).section === "queues";
}
