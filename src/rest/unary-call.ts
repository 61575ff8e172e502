import type { Message } from "@bufbuild/protobuf";
import { Code, ConnectError, type ContextValues } from "@connectrpc/connect";
import { mergeNonProtocolHeaders } from "@connectrpc/connect/protocol";
import { errorToJson, parseTimeout } from "@connectrpc/connect/protocol-connect";
import { Call } from "../unary/call.ts";
import type { UnaryMethod } from "../unary/registry.ts";

/** How a call ended: with a message, or with an error as Connect's JSON has it. */
export type CallResult = { readonly header: Headers } & ({ readonly message: Message } | { readonly error: unknown });

/** What a call in process is made of. */
export interface CallInput {
  /** The headers of the call. Connect-Timeout-Ms is its deadline. */
  readonly header: Headers;
  readonly contextValues: ContextValues;
  /** Ends the call when it is aborted. */
  readonly gone: AbortSignal;
  /** Gives the request message. Asked for after the request gate. */
  readonly message: () => Promise<Message>;
}

/** Makes a unary call in process, as the Connect protocol would, without writing its messages to bytes and back. */
export async function callUnary(target: UnaryMethod, input: CallInput): Promise<CallResult> {
  const { header, contextValues, gone } = input;
  const { maxTimeoutMs, jsonOptions } = target.options;
  const timeout = parseTimeout(header.get("connect-timeout-ms"), maxTimeoutMs);
  const call = new Call(target, {
    protocolName: "connect",
    url: `http://localhost${target.path}`,
    requestHeader: header,
    responseHeader: new Headers(),
    responseTrailer: new Headers(),
    timeoutMs: timeout.error === undefined ? timeout.timeoutMs : undefined,
    contextValues,
  });
  const leave = () => call.abort(gone.reason);
  if (gone.aborted) leave();
  else gone.addEventListener("abort", leave, { once: true });
  try {
    const message = await call.run(
      async () => {
        if (timeout.error !== undefined) throw timeout.error;
        return await input.message();
      },
      (answer) => answer,
    );
    return { header: call.responseHeader, message };
  } catch (thrown) {
    const error = thrown instanceof ConnectError ? thrown : new ConnectError("internal error", Code.Internal);
    if (!error.isWireError) mergeNonProtocolHeaders(call.responseHeader, error.metadata);
    return { header: call.responseHeader, error: errorToJson(error, jsonOptions) };
  }
}
