import { type ReceivedRequest, type Receiver, type Reply, type Responder, startReceiver } from "../support/receiver.ts";
import { unique } from "./calls.ts";

/** One path of a receiver, which answers by itself. */
export interface Endpoint {
  readonly url: string;
  /** Sets the answer; `index` counts the requests to this endpoint. Without it: 200. */
  respond(reply: Responder | Reply): void;
  /** The first request here that no earlier call has returned, now or within twenty seconds. */
  next(): Promise<ReceivedRequest>;
  count(): number;
}

/** A receiver whose paths are endpoints of their own, so that tests that share it do not meet. */
export interface Endpoints extends AsyncDisposable {
  open(): Endpoint;
}

/** Starts a receiver on loopback. */
export async function openEndpoints(): Promise<Endpoints> {
  const receiver: Receiver = await startReceiver();
  const responders = new Map<string, Responder>();
  const received = (path: string): number => receiver.requests.filter((request) => request.path === path).length;
  receiver.respond((request) => responders.get(request.path)?.(request, received(request.path) - 1) ?? {});
  return {
    open() {
      const path = `/${unique("hook")}`;
      return {
        url: `${receiver.url}${path}`,
        respond: (reply) => void responders.set(path, typeof reply === "function" ? reply : () => reply),
        next: () => receiver.next((request) => request.path === path),
        count: () => received(path),
      };
    },
    [Symbol.asyncDispose]: () => receiver[Symbol.asyncDispose](),
  };
}
