import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline/promises";
import { text as readText } from "node:stream/consumers";
import { environmentVariable } from "../../config.ts";
import { type ConnectionValues, connectionFrom } from "../api/connection.ts";
import { loadCalls } from "../api/contract.ts";
import { CommandError, EXIT } from "../failure.ts";
import { applyPlan } from "./apply.ts";
import { exportFile } from "./export.ts";
import { readDeclaration } from "./file.ts";
import { kindsOf } from "./kinds.ts";
import { makePlan, type PlanOptions, planText } from "./plan.ts";

export interface PlanValues extends ConnectionValues {
  readonly prune?: true;
  readonly secrets?: true;
  readonly detailedExitcode?: true;
}

export interface ApplyValues extends ConnectionValues {
  readonly prune?: true;
  readonly secrets?: true;
  readonly yes?: true;
}

/** How `carillon plan --detailed-exitcode` tells that there is something to do. */
const CHANGES = 2;

/** `carillon export`: what a project has, as a file that declares it. */
export async function exportCommand(values: ConnectionValues): Promise<number> {
  const kinds = kindsOf(await loadCalls());
  process.stdout.write(await exportFile(connectionFrom(values), kinds));
  return EXIT.ok;
}

/** `carillon plan FILE`: what `apply` would do. Changes nothing. */
export async function planCommand(file: string, values: PlanValues): Promise<number> {
  const { plan } = await planOf(file, values);
  console.log(planText(plan, process.stdout.isTTY));
  return values.detailedExitcode && plan.steps.length > 0 ? CHANGES : EXIT.ok;
}

/** `carillon apply FILE`: shows the plan, asks, and does it. */
export async function applyCommand(file: string, values: ApplyValues): Promise<number> {
  const { plan, connection, options } = await planOf(file, values);
  console.log(planText(plan, process.stdout.isTTY));
  if (plan.steps.length === 0) return EXIT.ok;
  if (!values.yes && !(await confirmed())) {
    console.log("nothing was changed");
    return EXIT.refused;
  }
  await applyPlan(connection, plan, options);
  return EXIT.ok;
}

async function planOf(file: string, values: PlanValues) {
  const kinds = kindsOf(await loadCalls());
  const declaration = readDeclaration(file === "-" ? "standard input" : file, await textOf(file), kinds);
  const connection = connectionFrom(values);
  const options: PlanOptions = {
    prune: values.prune ?? false,
    secrets: values.secrets ?? false,
    variable: environmentVariable,
  };
  return { connection, options, plan: await makePlan(connection, kinds, declaration, options) };
}

async function textOf(file: string): Promise<string> {
  if (file === "-") return readText(process.stdin);
  try {
    return await readFile(file, "utf8");
  } catch (error) {
    throw new CommandError(`${file} cannot be read: ${(error as Error).message}`, { cause: error });
  }
}

async function confirmed(): Promise<boolean> {
  if (!process.stdin.isTTY || !process.stdout.isTTY) {
    throw new CommandError("there is no terminal to ask on: pass --yes to apply this", { exitCode: EXIT.usage });
  }
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  try {
    return /^y(es)?$/i.test((await terminal.question("Apply this? [y/N] ")).trim());
  } finally {
    terminal.close();
  }
}
