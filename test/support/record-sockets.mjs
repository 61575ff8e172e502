// Loaded into a node under test (`node --import`): writes a line for each socket that the process opens, whoever does it,
// with the files of the project and of its packages that the call came through, innermost first.
import { subscribe } from "node:diagnostics_channel";
import { appendFileSync } from "node:fs";

const file = process.env.CARILLON_TEST_SOCKETS;
Error.stackTraceLimit = 100;

function caller() {
  const frames =
    (new Error().stack ?? "").match(/(?:\/src\/[\w./-]+\.ts|\/node_modules\/(?:@[\w.-]+\/)?[\w.-]+)/g) ?? [];
  return [...new Set(frames.map((frame) => frame.replace(/^.*\/node_modules\//, "").replace(/^\//, "")))];
}

function record(about) {
  appendFileSync(file, `${JSON.stringify(about)}\n`);
}

subscribe("net.client.socket", ({ socket }) => {
  const through = caller();
  const end = (to) => {
    socket.off("connect", onConnect).off("error", onError);
    record({ kind: "tcp", through, to });
  };
  const onConnect = () => end(socket.remotePort ?? "unix");
  const onError = () => end("nowhere");
  socket.on("connect", onConnect).on("error", onError);
});
subscribe("udp.socket", () => record({ kind: "udp", through: caller(), to: "any" }));
for (const channel of ["http.client.request.start", "undici:request:create", "http2.client.stream.created"]) {
  subscribe(channel, () => record({ kind: channel, through: caller(), to: "any" }));
}
