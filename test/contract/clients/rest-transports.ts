import { once } from "node:events";
import { Agent, type IncomingMessage, request as requestHttp1 } from "node:http";
import { connect } from "node:http2";
import type { RestReply, RestTransport } from "./rest-client.ts";

/** HTTP/1.1 with node:http. */
export function http1(url: string): RestTransport {
  const agent = new Agent({ keepAlive: true });
  return {
    async send({ method, path, headers, body, signal }) {
      const request = requestHttp1(url + path, { method, headers, agent, ...(signal && { signal }) });
      const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
      request.once("response", resolve).on("error", reject).end(body);
      const response = await promise;
      return {
        status: response.statusCode ?? 0,
        contentType: response.headers["content-type"] ?? "",
        body: response,
      };
    },
    async [Symbol.asyncDispose]() {
      agent.destroy();
    },
  };
}

/** HTTP/2 with node:http2: with prior knowledge in cleartext, by ALPN with TLS, where `ca` is the one to trust. */
export function http2(url: string, ca?: string): RestTransport {
  const session = connect(url, ca === undefined ? {} : { ca });
  // What befalls the connection befalls its streams, which report it.
  session.on("error", () => {});
  return {
    async send({ method, path, headers, body, signal }): Promise<RestReply> {
      const stream = session.request({ ":method": method, ":path": path, ...headers }, { ...(signal && { signal }) });
      stream.end(body);
      const [answered] = await once(stream, "response");
      return { status: answered[":status"], contentType: String(answered["content-type"]), body: stream };
    },
    async [Symbol.asyncDispose]() {
      session.destroy();
    },
  };
}
