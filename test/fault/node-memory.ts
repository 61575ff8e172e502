import type { Node } from "./node.ts";

/** What starts a node so that `memoryOf` can look into it. */
export const INSPECTABLE = { NODE_OPTIONS: "--inspect=127.0.0.1:0" };

const ANSWER_MS = 30_000;

/** What a node holds when its garbage is gone. Sizes are in bytes. */
export interface Memory {
  /** What it has of the system, garbage and room for more included. */
  readonly rss: number;
  /** The heap, and the buffers outside of it. */
  readonly held: number;
  /** What keeps the event loop alive, by kind: sockets, timers. */
  readonly resources: Readonly<Record<string, number>>;
  /** Objects of classes whose leak does not show in the heap until much later. */
  readonly sockets: number;
  readonly signals: number;
}

/** Collects the garbage of a node that was started INSPECTABLE, and measures what is left. */
export async function memoryOf(node: Node): Promise<Memory> {
  const address = node.lines.map((line) => /^Debugger listening on (ws:\S+)/.exec(line)?.[1]).find(Boolean);
  if (address === undefined) throw new Error("the node cannot be inspected");
  const socket = new WebSocket(address);
  try {
    await once(socket, "open");
    const ask = async (
      method: string,
      params: object = {},
    ): Promise<{ readonly result: { readonly value?: unknown } }> => {
      const answer = once(socket, "message");
      socket.send(JSON.stringify({ id: 1, method, params }));
      return JSON.parse((await answer).data).result;
    };
    // The second time for what the finalizers of the first let go.
    await ask("HeapProfiler.collectGarbage");
    await ask("HeapProfiler.collectGarbage");
    const { result } = await ask("Runtime.evaluate", { expression: EXPRESSION, returnByValue: true });
    return result.value as Memory;
  } finally {
    socket.close();
  }
}

const EXPRESSION = `(() => {
  const { rss, heapUsed, external } = process.memoryUsage();
  const resources = {};
  for (const kind of process.getActiveResourcesInfo()) resources[kind] = (resources[kind] ?? 0) + 1;
  const { queryObjects } = process.getBuiltinModule("node:v8");
  const sockets = queryObjects(process.getBuiltinModule("node:net").Socket, { format: "count" });
  const signals = queryObjects(AbortSignal, { format: "count" });
  return { rss, held: heapUsed + external, resources, sockets, signals };
})()`;

function once(socket: WebSocket, event: "open" | "message"): Promise<MessageEvent> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(reject, ANSWER_MS, new Error("the inspector does not answer"));
    socket.addEventListener("error", () => reject(new Error("the inspector cannot be reached")), { once: true });
    socket.addEventListener(
      event,
      (message) => {
        clearTimeout(timer);
        resolve(message as MessageEvent);
      },
      { once: true },
    );
  });
}
