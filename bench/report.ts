import { mkdir, writeFile } from "node:fs/promises";
import { cpus, totalmem, type } from "node:os";
import { dirname } from "node:path";
import type { DatabaseServer } from "./database.ts";
import { median } from "./measure.ts";
import { peerVersions } from "./peers.ts";
import type { Settings } from "./settings.ts";
import { isMet, type Rounds, type Verdict } from "./verdict.ts";

/** What a scenario found. */
export interface Finding {
  readonly scenario: string;
  readonly rounds: Rounds;
  readonly verdicts: readonly Verdict[];
}

/** One line for each goal: the bound, and the least, the middle and the greatest of the rounds. */
export function verdictTable(findings: readonly Finding[]): string {
  const rows = findings
    .flatMap(({ verdicts }) => verdicts)
    .map((verdict) => {
      const { goal, what, unit, bound, values } = verdict;
      const limit = "atLeast" in bound ? `≥ ${bound.atLeast}` : `≤ ${bound.atMost}`;
      const measured =
        values.length === 0 ? ["–", "–", "–"] : [Math.min(...values), median(values), Math.max(...values)];
      const word = values.length === 0 ? "not measured" : isMet(verdict) ? "met" : "missed";
      return [`${goal}`, what, `${limit} ${unit}`, ...measured.map(show), word];
    });
  return table(["goal", "what", "bound", "min", "median", "max", ""], rows);
}

/** The medians of every contestant. */
export function figureTable({ rounds }: Finding): string {
  const rows = Object.entries(rounds).map(([name, measures]) => {
    const names = [...new Set(measures.flatMap((round) => Object.keys(round)))];
    const text = names.map((figure) => `${figure} ${show(median(measures.flatMap((round) => round[figure] ?? [])))}`);
    return [name, text.join("   ")];
  });
  return table(["contestant", "medians"], rows);
}

/** Writes all that was measured, with what it was measured on. */
export async function writeResults(file: string, { settings, server, findings, startedAt }: Results): Promise<void> {
  const results = {
    started_at: startedAt.toISOString(),
    ended_at: new Date().toISOString(),
    machine: {
      processors: cpus().length,
      model: cpus()[0]?.model,
      memory_gb: Math.round(totalmem() / 2 ** 30),
      os: type(),
    },
    versions: { node: process.version, postgres: server.version, ...(settings.peers && peerVersions()) },
    postgres_settings: server.settings,
    settings,
    scenarios: findings,
  };
  await mkdir(dirname(file), { recursive: true });
  const replacer = (_: string, value: unknown): unknown =>
    typeof value === "number" ? Number(value.toPrecision(4)) : value;
  await writeFile(file, `${JSON.stringify(results, replacer, 1)}\n`);
}

interface Results {
  readonly settings: Settings;
  readonly server: DatabaseServer;
  readonly findings: readonly Finding[];
  readonly startedAt: Date;
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [head, ...rows];
  const widths = head.map((_, column) => Math.max(...all.map((row) => (row[column] ?? "").length)));
  return all
    .map((row) => `${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  ")}`.trimEnd())
    .join("\n");
}

function show(value: number | string): string {
  if (typeof value === "string") return value;
  return value >= 1_000 ? Math.round(value).toLocaleString("en-US") : `${Number(value.toPrecision(3))}`;
}
