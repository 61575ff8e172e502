import { connect as connectTcp, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { type Address, formatAddress, parseAddress } from "./address.ts";
import { AttemptFailure } from "./failure.ts";
import { msSince, type Timings } from "./timings.ts";

/** How long TCP and TLS together may take. */
const CONNECT_MS = 5_000;

/** What is dialled: an address that the guard has passed, never a name. */
export interface Endpoint {
  readonly address: Address;
  readonly port: number;
  readonly tls: boolean;
  /** The name that the certificate must be for. Undefined for a target that is an address itself. */
  readonly servername: string | undefined;
}

/**
 * Opens a connection that is ready for HTTP/1.1, and notes in `timings` how long that took. Rejects with AttemptFailure,
 * and with the signal's reason when it aborts; the socket is destroyed then.
 */
export type Connect = (endpoint: Endpoint, signal: AbortSignal, timings: Timings) => Promise<Socket>;

/** What a connector can be told beyond the endpoint. */
export interface ConnectorOptions {
  /** Authorities to trust instead of the system's and Node's; PEM. */
  readonly ca?: string;
  /** The ports that this server itself listens on: no connection from this machine to itself on one of them. */
  readonly ownPorts?: readonly number[];
}

/**
 * The connector for real use. Knows no proxy, whatever the environment says. Checks before the first byte is written
 * that the peer is the address that was asked for.
 */
export function createConnector({ ca, ownPorts = [] }: ConnectorOptions = {}): Connect {
  return async function connect(endpoint, signal, timings) {
    const limit = AbortSignal.any([signal, AbortSignal.timeout(CONNECT_MS)]);
    const startedMs = performance.now();
    try {
      const plain = connectTcp({ host: formatAddress(endpoint.address), port: endpoint.port, noDelay: true });
      await ready(plain, "connect", limit).catch((cause) => {
        limit.throwIfAborted();
        throw new AttemptFailure("connect_failed", "no connection could be made", { cause });
      });
      timings.connectMs = msSince(startedMs);
      if (!isExpectedPeer(plain, endpoint, ownPorts)) {
        const cause = new Error(`from ${plain.localAddress} to ${plain.remoteAddress}`);
        plain.destroy();
        throw new AttemptFailure("blocked_address", "the target's address is not allowed", { cause });
      }
      if (!endpoint.tls) return plain;

      const connectedMs = performance.now();
      const secure = connectTls({
        socket: plain,
        // The name that is verified when there is no servername; nothing is resolved or dialled here.
        host: formatAddress(endpoint.address),
        ...(endpoint.servername === undefined ? {} : { servername: endpoint.servername }),
        ...(ca === undefined ? {} : { ca }),
        ALPNProtocols: ["http/1.1"],
      });
      await ready(secure, "secureConnect", limit).catch((cause) => {
        plain.destroy();
        limit.throwIfAborted();
        throw new AttemptFailure("tls_failed", tlsDetail(cause), { cause });
      });
      timings.tlsMs = msSince(connectedMs);
      return secure;
    } catch (error) {
      signal.throwIfAborted();
      if (limit.aborted) throw new AttemptFailure("timeout", `no connection within ${CONNECT_MS / 1000} s`);
      throw error;
    }
  };
}

/** Waits for the socket's event; destroys the socket and throws on an error, an early close or the signal. */
async function ready(socket: Socket, event: "connect" | "secureConnect", signal: AbortSignal): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const onAbort = (): void => reject(signal.reason);
  const onClose = (): void => reject(new Error("closed before it was ready"));
  socket.once(event, resolve).once("error", reject).once("close", onClose);
  signal.addEventListener("abort", onAbort, { once: true });
  if (signal.aborted) onAbort();
  try {
    await promise;
  } catch (error) {
    // A socket that is given up may still fail; without a listener that would end the process.
    socket.on("error", () => {}).destroy();
    throw error;
  } finally {
    socket.off(event, resolve).off("error", reject).off("close", onClose);
    signal.removeEventListener("abort", onAbort);
  }
}

function isExpectedPeer(socket: Socket, endpoint: Endpoint, ownPorts: readonly number[]): boolean {
  const peer = parseAddress(socket.remoteAddress ?? "");
  if (peer === undefined || peer.family !== endpoint.address.family || peer.value !== endpoint.address.value)
    return false;
  // The kernel picks the target itself as the source only when the target is this machine.
  return !(ownPorts.includes(endpoint.port) && socket.localAddress === socket.remoteAddress);
}

/** What may be said about a failed handshake: faults of the certificate, which the receiver shows to everybody. */
function tlsDetail(error: unknown): string {
  switch (error instanceof Error && "code" in error ? error.code : undefined) {
    case "CERT_HAS_EXPIRED":
      return "the certificate has expired";
    case "CERT_NOT_YET_VALID":
      return "the certificate is not valid yet";
    case "ERR_TLS_CERT_ALTNAME_INVALID":
      return "the certificate is for another name";
    case "DEPTH_ZERO_SELF_SIGNED_CERT":
    case "SELF_SIGNED_CERT_IN_CHAIN":
    case "UNABLE_TO_GET_ISSUER_CERT":
    case "UNABLE_TO_GET_ISSUER_CERT_LOCALLY":
    case "UNABLE_TO_VERIFY_LEAF_SIGNATURE":
      return "the certificate is not signed by a known authority";
    default:
      return "the TLS handshake failed";
  }
}
