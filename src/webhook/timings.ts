/** Where the time of an attempt went, each phase in milliseconds, to a tenth. A phase that did not happen is left out. */
export interface Timings {
  /** Asking for the name's addresses. Not with a target that is an address. */
  dnsMs?: number;
  /** The TCP handshake. Not on a connection that was open already. */
  connectMs?: number;
  /** The TLS handshake. Not on a connection that was open already, nor with plain http. */
  tlsMs?: number;
  /** From the request's start on a ready connection to the answer's headers. */
  firstByteMs?: number;
}

/** Milliseconds since `startedMs` on the monotonic clock, to a tenth. */
export function msSince(startedMs: number): number {
  return Math.round((performance.now() - startedMs) * 10) / 10;
}
