import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { cpus, loadavg, totalmem, type } from "node:os";
import { join } from "node:path";
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

/** Writes what a scenario found, with what it was measured on, to a file of its own in `dir`. */
export async function writeResults(dir: string, finding: Finding, { settings, server, startedAt }: Run): Promise<void> {
  const { scenario, rounds, verdicts } = finding;
  // How much was measured; the rest is about this call and this machine's folders.
  const { only: _only, output: _output, profile: _profile, ...amounts } = settings;
  const results: Results = {
    scenario,
    started_at: startedAt.toISOString(),
    ended_at: new Date().toISOString(),
    machine: {
      processors: cpus().length,
      model: cpus()[0]?.model,
      memory_gb: Math.round(totalmem() / 2 ** 30),
      load_average: loadavg()[0],
      os: type(),
    },
    versions: { node: process.version, postgres: server.version, ...(settings.peers && peerVersions()) },
    postgres_settings: server.settings,
    settings: amounts,
    rounds,
    verdicts,
  };
  await mkdir(dir, { recursive: true });
  const short = (_: string, value: unknown): unknown =>
    typeof value === "number" ? Number(value.toPrecision(4)) : value;
  await writeFile(join(dir, `${scenario}.json`), `${JSON.stringify(results, short, 1)}\n`);
}

/** Reads what `writeResults` wrote to `dir`, by their goals. */
export async function readResults(dir: string): Promise<Results[]> {
  const files = (await readdir(dir)).filter((file) => file.endsWith(".json"));
  const texts = await Promise.all(files.map((file) => readFile(join(dir, file), "utf8")));
  const results = texts.map((text) => JSON.parse(text) as Results);
  return results.sort((a, b) => (a.verdicts[0]?.goal ?? 99) - (b.verdicts[0]?.goal ?? 99));
}

interface Run {
  readonly settings: Settings;
  readonly server: DatabaseServer;
  readonly startedAt: Date;
}

interface Results extends Finding {
  readonly started_at: string;
  readonly ended_at: string;
  readonly machine: object;
  readonly versions: Readonly<Record<string, string>>;
  readonly postgres_settings: Readonly<Record<string, string>>;
  readonly settings: Omit<Settings, "only" | "output" | "profile">;
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
