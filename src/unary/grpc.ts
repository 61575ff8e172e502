import { Code, ConnectError } from "@connectrpc/connect";
import { compressedFlag, compressionNegotiate } from "@connectrpc/connect/protocol";
import { contentTypeJson, contentTypeProto, parseTimeout, setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import { EnvelopedBody } from "./body.ts";
import { Call } from "./call.ts";
import type { Arrival } from "./exchange.ts";

/** Answers one unary call of gRPC over HTTP/2: messages in envelopes, the status in trailers. */
export async function answerGrpc(
  { target, exchange, url, header, contextValues }: Arrival,
  isBinary: boolean,
): Promise<void> {
  const { options, serialization } = target;
  const timeout = parseTimeout(header.get("grpc-timeout"), options.maxTimeoutMs);
  const compression = compressionNegotiate(
    options.acceptCompression,
    header.get("grpc-encoding"),
    header.get("grpc-accept-encoding"),
    "Grpc-Accept-Encoding",
  );
  const call = new Call(target, {
    protocolName: "grpc",
    url,
    requestHeader: header,
    responseHeader: new Headers({ "content-type": isBinary ? contentTypeProto : contentTypeJson }),
    responseTrailer: new Headers({ "grpc-status": "0" }),
    timeoutMs: timeout.error === undefined ? timeout.timeoutMs : undefined,
    contextValues,
  });
  if (compression.response !== null) call.responseHeader.set("grpc-encoding", compression.response.name);
  exchange.attach(call);

  let body: Uint8Array | undefined;
  try {
    body = await call.run(
      async () => {
        if (compression.error !== undefined) throw compression.error;
        if (timeout.error !== undefined) throw timeout.error;
        const { parse } = serialization.getI(isBinary);
        const enveloped = new EnvelopedBody(options.readMaxBytes, compression.request, parse);
        await exchange.receive((chunk) => enveloped.push(chunk));
        return enveloped.end();
      },
      async (answer) => {
        const bytes = serialization.getO(isBinary).serialize(answer);
        if (compression.response === null || bytes.byteLength < options.compressMinBytes) return envelope(0, bytes);
        return envelope(compressedFlag, await compression.response.compress(bytes));
      },
    );
  } catch (thrown) {
    const error =
      thrown instanceof ConnectError
        ? thrown
        : new ConnectError("internal error", Code.Internal, undefined, undefined, thrown);
    setTrailerStatus(call.responseTrailer, error);
  }
  exchange.respond(200, call.responseHeader, body, call.responseTrailer);
}

function envelope(flags: number, data: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(data.length + 5);
  bytes.writeUInt8(flags, 0);
  bytes.writeUInt32BE(data.length, 1);
  bytes.set(data, 5);
  return bytes;
}
