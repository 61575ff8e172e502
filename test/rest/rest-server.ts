import { once } from "node:events";
import { createServer, type Server } from "node:http";
import { createServer as createHttp2Server } from "node:http2";
import type { AddressInfo, Server as NetServer } from "node:net";
import { Code, ConnectError, type ConnectRouter, createConnectRouter, type HandlerContext } from "@connectrpc/connect";
import { createRestHandler, type RestOptions } from "../../src/rest/transcode.ts";

/** A REST face over real sockets, in front of whatever the routes implement. */
export interface RestServer extends AsyncDisposable {
  readonly origin: string;
  /** Faults that were reported. */
  readonly faults: unknown[];
}

export interface RestServerOptions extends Partial<Omit<RestOptions, "handlers" | "onFault">> {
  readonly http2?: boolean;
  readonly requestGate?: (context: HandlerContext) => void | Promise<void>;
}

/** Serves the routes on a free port of the loopback interface. */
export async function serveRest(
  routes: (router: ConnectRouter) => void,
  { http2 = false, requestGate, ...rest }: RestServerOptions = {},
): Promise<RestServer> {
  const router = createConnectRouter({
    grpc: false,
    grpcWeb: false,
    connect: true,
    readMaxBytes: 8 << 20,
    ...(requestGate === undefined ? {} : { requestGate }),
  });
  routes(router);
  const faults: unknown[] = [];
  const handler = createRestHandler({
    handlers: router.handlers,
    basePath: "/v1/scheduling",
    maxBodyBytes: 1 << 20,
    onFault: (error) => void faults.push(error),
    ...rest,
  });
  const server: NetServer = http2 ? createHttp2Server(handler) : createServer(handler);
  const sockets = new Set<{ destroy(): void }>();
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    faults,
    async [Symbol.asyncDispose]() {
      const closed = once(server, "close");
      server.close();
      (server as Server).closeAllConnections?.();
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

/** A gate that lets only `Authorization: Bearer key` pass. */
export function keyGate(context: HandlerContext): void {
  if (context.requestHeader.get("authorization") !== "Bearer key")
    throw new ConnectError("no key", Code.Unauthenticated);
}

/** A promise that the test settles. */
export function signal<T = void>(): { readonly promise: Promise<T>; resolve(value: T): void } {
  return Promise.withResolvers<T>();
}
