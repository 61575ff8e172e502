import { fork } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

/** A receiver in a process of its own that answers every POST at once with an empty 200. */
export interface FastReceiver extends AsyncDisposable {
  readonly url: string;
  /** What has come in since the last call. */
  takeArrivals(): Promise<Arrival[]>;
}

/** One request. */
export interface Arrival {
  /** When its head had been read: Unix time in milliseconds. */
  readonly at: number;
  /** Of what fire it says it is, likewise; undefined where it says nothing. */
  readonly scheduledAt: number | undefined;
}

/** The header by which a request says of what fire it is. */
export const SCHEDULED_AT = "carillon-scheduled-at";
/** Most arrivals that are kept until they are taken. */
const MAX_KEPT = 1_000_000;

/** Starts a receiver at a free port of loopback. */
export async function startFastReceiver(): Promise<FastReceiver> {
  const child = fork(import.meta.filename, { stdio: "inherit" });
  const [port] = await once(child, "message");
  return {
    url: `http://127.0.0.1:${port}/hook`,
    async takeArrivals() {
      const answered = once(child, "message");
      child.send("take");
      const [arrivals] = await answered;
      return arrivals;
    },
    async [Symbol.asyncDispose]() {
      const ended = once(child, "exit");
      child.kill();
      await ended;
    },
  };
}

if (process.send !== undefined && process.argv[1] === import.meta.filename) {
  let arrivals: Arrival[] = [];
  const server = createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
    const said = request.headers[SCHEDULED_AT];
    const scheduledAt = typeof said === "string" ? Date.parse(said) : undefined;
    if (arrivals.length < MAX_KEPT) arrivals.push({ at: performance.timeOrigin + performance.now(), scheduledAt });
    request.resume();
    request.once("end", () => response.end());
  });
  process.on("message", () => {
    process.send?.(arrivals);
    arrivals = [];
  });
  server.listen(0, "127.0.0.1", () => process.send?.((server.address() as AddressInfo).port));
}
