import { Agent } from "node:http";
import { Agent as TlsAgent } from "node:https";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";
import { connectClient } from "./connect-client.ts";
import type { OpenClient } from "./scheduling-client.ts";

/** Connect or gRPC-Web over HTTP/1.1. `ca` is the certificate to trust when the URL is https. */
export function overHttp1(protocol: "connect" | "grpc-web", useBinaryFormat: boolean, ca?: string): OpenClient {
  const createTransport = protocol === "connect" ? createConnectTransport : createGrpcWebTransport;
  return (baseUrl, key) => {
    const agent = ca === undefined ? new Agent({ keepAlive: true }) : new TlsAgent({ keepAlive: true, ca });
    const transport = createTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat, nodeOptions: { agent } });
    return connectClient(transport, key, () => agent.destroy());
  };
}

/** Any of the three protocols over HTTP/2: with prior knowledge in cleartext, by ALPN with TLS. */
export function overHttp2(
  protocol: "connect" | "grpc" | "grpc-web",
  useBinaryFormat: boolean,
  ca?: string,
): OpenClient {
  return (baseUrl, key) => {
    const sessionManager = new Http2SessionManager(baseUrl, {}, ca === undefined ? {} : { ca });
    const options = { baseUrl, useBinaryFormat, sessionManager };
    const transport =
      protocol === "grpc"
        ? createGrpcTransport(options)
        : (protocol === "connect" ? createConnectTransport : createGrpcWebTransport)({ ...options, httpVersion: "2" });
    return connectClient(transport, key, () => sessionManager.abort());
  };
}
