/**
 * Prints the goals of a directory of results, and draws the plots where it has the scenario growth:
 * `node bench/summary.ts bench/results/latest docs/performance`.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { median } from "./measure.ts";
import { drawPlot, type Plot, type Point } from "./plot.ts";
import { figureTable, readResults, verdictTable } from "./report.ts";
import { figures, type Rounds } from "./verdict.ts";

const PLOTS: Readonly<Record<string, Omit<Plot, "points"> & { readonly figure?: string }>> = {
  depth: { title: "Depth of the queue", across: "messages that wait", up: "messages a second" },
  queues: { title: "Publishes over several queues", across: "queues", up: "publishes a second" },
  groups: { title: "FIFO groups", across: "groups", up: "messages a second" },
  payload: { title: "Size of the payload", across: "bytes", up: "MB a second", figure: "megabytes_per_s" },
  streams: { title: "Streams on one queue", across: "streams", up: "messages a second" },
  nodes: { title: "Nodes on one queue", across: "nodes, all on the same cores", up: "messages a second" },
};

const [source = "bench/results/latest", target] = process.argv.slice(2);
const results = await readResults(source);
for (const result of results) process.stdout.write(`${result.scenario}\n${figureTable(result)}\n\n`);
process.stdout.write(`${verdictTable(results)}\n`);

const rounds = results.find(({ scenario }) => scenario === "growth")?.rounds;
if (rounds !== undefined && target !== undefined) {
  mkdirSync(target, { recursive: true });
  for (const [name, { figure = "per_s", ...plot }] of Object.entries(PLOTS)) {
    const points = pointsOf(rounds, name, figure);
    if (points.length > 0) writeFileSync(join(target, `${name}.svg`), drawPlot({ ...plot, points }));
  }
}

/** Entries are called `depth=1000`. */
function pointsOf(all: Rounds, name: string, figure: string): Point[] {
  return Object.keys(all)
    .filter((entry) => entry.startsWith(`${name}=`))
    .map((entry) => {
      const values = figures(all, entry, figure);
      const x = Number(entry.slice(name.length + 1));
      return { x, least: Math.min(...values), middle: median(values), greatest: Math.max(...values) };
    });
}
