import { Code, ConnectError } from "@connectrpc/connect";
import { compressionNegotiate, mergeNonProtocolHeaders } from "@connectrpc/connect/protocol";
import {
  codeToHttpStatus,
  contentTypeUnaryJson,
  contentTypeUnaryProto,
  errorToJsonBytes,
  parseTimeout,
  protocolVersion,
} from "@connectrpc/connect/protocol-connect";
import { WholeBody } from "./body.ts";
import { Call } from "./call.ts";
import type { Arrival } from "./exchange.ts";

/** Has the last word on the error that a Connect call is answered with. */
export type ConnectErrorMapper = (error: ConnectError) => ConnectError;

/** Answers one unary call of the Connect protocol: the body is the message, and an error is a JSON object. */
export async function answerConnect(
  { target, exchange, url, header, contextValues }: Arrival,
  isBinary: boolean,
  mapError: ConnectErrorMapper,
): Promise<void> {
  const { options, serialization } = target;
  const { readMaxBytes, jsonOptions } = options;
  const timeout = parseTimeout(header.get("connect-timeout-ms"), options.maxTimeoutMs);
  const compression = compressionNegotiate(
    options.acceptCompression,
    header.get("content-encoding"),
    header.get("accept-encoding"),
    "Accept-Encoding",
  );
  const call = new Call(target, {
    protocolName: "connect",
    url,
    requestHeader: header,
    responseHeader: new Headers({ "content-type": isBinary ? contentTypeUnaryProto : contentTypeUnaryJson }),
    responseTrailer: new Headers(),
    timeoutMs: timeout.error === undefined ? timeout.timeoutMs : undefined,
    contextValues,
  });
  exchange.attach(call);

  let status = 200;
  let body: Uint8Array;
  try {
    body = await call.run(
      async () => {
        if (options.requireConnectProtocolHeader) requireVersion(header);
        if (compression.error !== undefined) throw compression.error;
        if (timeout.error !== undefined) throw timeout.error;
        const whole = new WholeBody(readMaxBytes, header.get("content-length"));
        await exchange.receive((chunk) => whole.push(chunk));
        const sent = whole.end();
        const bytes = compression.request === null ? sent : await compression.request.decompress(sent, readMaxBytes);
        return serialization.getI(isBinary).parse(bytes);
      },
      (answer) => serialization.getO(isBinary).serialize(answer),
    );
  } catch (thrown) {
    const error = mapError(
      thrown instanceof ConnectError
        ? thrown
        : new ConnectError("internal error", Code.Internal, undefined, undefined, thrown),
    );
    status = codeToHttpStatus(error.code);
    call.responseHeader.set("content-type", contentTypeUnaryJson);
    if (!error.isWireError) mergeNonProtocolHeaders(call.responseHeader, error.metadata);
    body = errorToJsonBytes(error, jsonOptions);
  }

  const answerHeader = call.responseHeader;
  if (compression.response !== null && body.byteLength >= options.compressMinBytes) {
    body = await compression.response.compress(body as Uint8Array<ArrayBuffer>);
    answerHeader.set("content-encoding", compression.response.name);
  }
  for (const [name, value] of call.responseTrailer) answerHeader.append(`trailer-${name}`, value);
  answerHeader.set("content-length", String(body.byteLength));
  exchange.respond(status, answerHeader, body);
}

function requireVersion(header: Headers): void {
  const version = header.get("connect-protocol-version");
  if (version === protocolVersion) return;
  throw new ConnectError(
    version === null
      ? `missing required header: set Connect-Protocol-Version to "${protocolVersion}"`
      : `Connect-Protocol-Version must be "${protocolVersion}": got "${version}"`,
    Code.InvalidArgument,
  );
}
