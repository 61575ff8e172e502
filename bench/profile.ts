/**
 * Says where the processor time of a profile went, by whose code it was: `node bench/profile.ts DIR/*.cpuprofile`. Profiles
 * come from `npm run bench -- --profile=DIR`.
 */
import { readFileSync } from "node:fs";
import { basename } from "node:path";

interface Profile {
  readonly nodes: readonly {
    readonly id: number;
    readonly callFrame: { readonly functionName: string; readonly url: string };
  }[];
  readonly samples: readonly number[];
  readonly timeDeltas: readonly number[];
}

/** Most lines of single functions. */
const FUNCTIONS = 12;

for (const file of process.argv.slice(2)) {
  const { nodes, samples, timeDeltas } = JSON.parse(readFileSync(file, "utf8")) as Profile;
  const frames = new Map(nodes.map(({ id, callFrame }) => [id, callFrame]));
  const byOwner = new Map<string, number>();
  const byFunction = new Map<string, number>();
  let busy = 0;
  for (const [index, id] of samples.entries()) {
    const frame = frames.get(id);
    const time = timeDeltas[index] ?? 0;
    if (frame === undefined || frame.functionName === "(idle)") continue;
    busy += time;
    const owner = ownerOf(frame);
    add(byOwner, owner, time);
    add(byFunction, `${frame.functionName || "(anonymous)"}, ${owner}`, time);
  }
  process.stdout.write(`${basename(file)}: ${(busy / 1e6).toFixed(1)} s busy\n`);
  print(byOwner, busy, byOwner.size);
  process.stdout.write("  of which, by function:\n");
  print(byFunction, busy, FUNCTIONS);
}

/** Whose code a frame is: a package, a folder of the project's, a module of Node's, or the engine. */
function ownerOf({ functionName, url }: { readonly functionName: string; readonly url: string }): string {
  const ownPackage = /node_modules\/((?:@[^/]+\/)?[^/]+)\/(?!.*node_modules\/)/.exec(url)?.[1];
  if (ownPackage !== undefined) return ownPackage;
  const folder = /\/((?:src|gen)(?:\/[^/]+)?)\//.exec(url)?.[1];
  if (folder !== undefined) return folder;
  const builtIn = /^node:(?:internal\/)?([^/]+)/.exec(url)?.[1];
  if (builtIn !== undefined) return `node:${builtIn}`;
  return functionName.startsWith("(") ? functionName : "the engine";
}

function add(times: Map<string, number>, key: string, time: number): void {
  times.set(key, (times.get(key) ?? 0) + time);
}

function print(times: ReadonlyMap<string, number>, total: number, most: number): void {
  const sorted = [...times].sort(([, a], [, b]) => b - a).slice(0, most);
  for (const [key, time] of sorted) {
    const percent = (time / total) * 100;
    if (percent >= 1) process.stdout.write(`  ${percent.toFixed(0).padStart(3)} %  ${key}\n`);
  }
}
