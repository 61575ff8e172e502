/** What one connection, request or HTTP/2 session may cost before the port closes it. Times are milliseconds. */
export interface PortLimits {
  /** Longest time to receive the headers of an HTTP/1.1 request. Answer: 408. */
  readonly headersTimeoutMs: number;
  /**
   * Longest time to receive a whole HTTP/1.1 request with its body. How long the answer takes is not limited by it.
   * HTTP/2 requests are not covered, since a bidirectional stream receives for as long as it lives. Answer: 408.
   */
  readonly requestTimeoutMs: number;
  /**
   * How long an HTTP/1.1 connection may wait for its next request. The default is above 60 s, the idle time of common
   * load balancers, so that the balancer closes first and never sends into a closing connection.
   */
  readonly keepAliveTimeoutMs: number;
  /**
   * Most bytes of request headers. Above it HTTP/1.1 is answered 431 and an HTTP/2 stream is reset. A session learns
   * the limit by its settings; for streams opened before it acknowledged them, nghttp2's own 64 KiB holds.
   */
  readonly maxHeaderBytes: number;
  /** Most header fields. An HTTP/1.1 request loses those beyond it, an HTTP/2 stream is reset. */
  readonly maxHeadersCount: number;
  /** How long a new connection may take to show which protocol it speaks, on TLS to finish the handshake. */
  readonly sniffTimeoutMs: number;
  /** Most open connections. Those beyond it are closed at once. */
  readonly maxConnections: number;
  /** Most open streams of one HTTP/2 session. Clients queue the calls beyond it. */
  readonly maxConcurrentStreams: number;
  /** Bytes that a client may send on one HTTP/2 stream before they are read. */
  readonly streamWindowBytes: number;
  /** Frames that break the protocol before the HTTP/2 session is closed. Node's default is 1000. */
  readonly maxInvalidFrames: number;
  /** Streams opened beyond `maxConcurrentStreams` before the HTTP/2 session is closed. Node's default is 100. */
  readonly maxRejectedStreams: number;
  /** Streams that a client may reset at once (rapid reset, CVE-2023-44487) before the HTTP/2 session is closed. */
  readonly streamResetBurst: number;
  /** Resets a second that a client earns back, up to `streamResetBurst`. */
  readonly streamResetsPerSecond: number;
  /** How often the peer of an HTTP/2 session is pinged. */
  readonly pingIntervalMs: number;
  /** How long the answer to a ping may take before the session is destroyed. */
  readonly pingTimeoutMs: number;
  /** How long an HTTP/2 session may stay without a stream before it is closed with GOAWAY. Checked once per ping. */
  readonly sessionIdleTimeoutMs: number;
}

export const DEFAULT_PORT_LIMITS: PortLimits = {
  headersTimeoutMs: 10_000,
  requestTimeoutMs: 60_000,
  keepAliveTimeoutMs: 65_000,
  maxHeaderBytes: 16_384,
  maxHeadersCount: 100,
  sniffTimeoutMs: 10_000,
  maxConnections: 10_000,
  maxConcurrentStreams: 250,
  streamWindowBytes: 1_048_576,
  maxInvalidFrames: 50,
  maxRejectedStreams: 50,
  streamResetBurst: 500,
  streamResetsPerSecond: 100,
  pingIntervalMs: 30_000,
  pingTimeoutMs: 10_000,
  sessionIdleTimeoutMs: 300_000,
};
