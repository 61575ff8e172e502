import type { ServerHttp2Session } from "node:http2";
import type { Socket } from "node:net";
import type { PortLimits } from "./port-limits.ts";

/**
 * Bytes that a client may send on all streams of a session together before the first are taken in. HTTP/2 starts every
 * connection at 65,535 whatever the window of a stream is, which would throttle uploads to that per round trip.
 */
const SESSION_WINDOW_BYTES = 4 * 1_048_576;

/**
 * Keeps one HTTP/2 session honest until it closes: pings the peer, destroys the session when no answer comes in time,
 * and closes it with GOAWAY when it has been without a stream for too long.
 */
export function superviseSession(session: ServerHttp2Session, socket: Socket, limits: PortLimits): void {
  let openStreams = 0;
  let idleSince = performance.now();
  let pongTimer: NodeJS.Timeout | undefined;

  session.setLocalWindowSize(SESSION_WINDOW_BYTES);
  session.on("stream", (stream) => {
    openStreams++;
    stream.once("close", () => {
      openStreams--;
      idleSince = performance.now();
    });
  });

  const timer = setInterval(() => {
    // A session that closed politely has ended its socket and waits for the peer's end, which may never come.
    if (session.destroyed) socket.destroy();
    if (session.destroyed || pongTimer !== undefined) return;
    pongTimer = setTimeout(() => session.destroy(), limits.pingTimeoutMs);
    session.ping(() => {
      clearTimeout(pongTimer);
      pongTimer = undefined;
    });
    if (openStreams === 0 && performance.now() - idleSince >= limits.sessionIdleTimeoutMs) session.close();
  }, limits.pingIntervalMs);

  socket.once("close", () => {
    clearInterval(timer);
    clearTimeout(pongTimer);
  });
}
