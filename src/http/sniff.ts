import type { Socket } from "node:net";

/** The first bytes of every HTTP/2 connection with prior knowledge (RFC 9113, section 3.4). */
const PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");

/**
 * Calls `decide` once the first bytes of `socket` show its protocol; the bytes are still to be read then. A socket
 * that ends, or stays undecided for `timeoutMs`, is destroyed and `decide` is never called.
 */
export function sniffProtocol(socket: Socket, timeoutMs: number, decide: (protocol: "http1" | "http2") => void): void {
  let received: Buffer = Buffer.alloc(0);

  function stop(): void {
    clearTimeout(timer);
    socket.off("readable", read);
    socket.off("end", giveUp);
    socket.off("error", giveUp);
    socket.off("close", stop);
  }

  function giveUp(): void {
    stop();
    // A reset can still be reported after the listeners are gone; without one it would end the process.
    socket.on("error", () => {});
    socket.destroy();
  }

  function read(): void {
    const chunk = socket.read() as Buffer | null;
    if (chunk === null) return;
    received = received.length === 0 ? chunk : Buffer.concat([received, chunk]);
    const compared = Math.min(received.length, PREFACE.length);
    const isPreface = received.subarray(0, compared).equals(PREFACE.subarray(0, compared));
    if (isPreface && compared < PREFACE.length) return;
    stop();
    socket.unshift(received);
    decide(isPreface ? "http2" : "http1");
  }

  const timer = setTimeout(giveUp, timeoutMs);
  socket.on("readable", read);
  socket.on("end", giveUp);
  socket.on("error", giveUp);
  socket.on("close", stop);
  read();
}
