import { globSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { until } from "./calls.ts";

const LIBRARY = "/usr/lib/*/faketime/libfaketime.so.1";
/** What a node's clock may be off beside the step: the Date header has whole seconds, and is made once a second. */
const TOLERANCE_MS = 5_000;

/** Clocks of nodes that can be set while the nodes run. Those of the database and of the test stay right. */
export interface WrongClocks extends AsyncDisposable {
  /** The environment in which a node has the clock of that index. */
  envOf(index: number): Readonly<Record<string, string>>;
  /** Sets a clock to so many seconds off. The node at `url` has it when this resolves: its Date header says so. */
  step(index: number, offsetSeconds: number, url: string): Promise<void>;
}

/** Throws where libfaketime is missing, naming the package. */
export async function wrongClocks(count: number): Promise<WrongClocks> {
  const library = globSync(LIBRARY)[0];
  if (library === undefined)
    throw new Error(`no ${LIBRARY}: install the Debian package libfaketime (.ci/packages does)`);
  const directory = await mkdtemp(join(tmpdir(), "carillon-clocks-"));
  const fileOf = (index: number): string => join(directory, `clock-${index}`);
  await Promise.all(Array.from({ length: count }, (_, index) => writeFile(fileOf(index), "+0")));
  return {
    envOf: (index) => ({
      LD_PRELOAD: library,
      FAKETIME_TIMESTAMP_FILE: fileOf(index),
      FAKETIME_CACHE_DURATION: "1",
      // What is set on a machine is its wall clock: timers go on as they were.
      FAKETIME_DONT_FAKE_MONOTONIC: "1",
      DONT_FAKE_MONOTONIC: "1",
    }),
    async step(index, offsetSeconds, url) {
      await writeFile(fileOf(index), `${offsetSeconds < 0 ? "" : "+"}${offsetSeconds}`);
      await until(`the clock of node ${index} is ${offsetSeconds} s off`, 20_000, async () => {
        const response = await fetch(`${url}/healthz`, { signal: AbortSignal.timeout(5_000) }).catch(() => undefined);
        const offBy = Date.parse(response?.headers.get("date") ?? "") - Date.now() - offsetSeconds * 1_000;
        return Math.abs(offBy) <= TOLERANCE_MS ? true : undefined;
      });
    },
    async [Symbol.asyncDispose]() {
      await rm(directory, { recursive: true, force: true });
    },
  };
}
