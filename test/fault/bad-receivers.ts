// Run as a process of its own, so that what bad receivers send costs neither the node nor the good receivers their time.
// Tells its parent the port, and how many requests it has had whenever the parent sends something.
import { gzipSync } from "node:zlib";
import { type Reply, startReceiver } from "../support/receiver.ts";

const mebibyte = Buffer.alloc(1_048_576, "x");
const interim = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(10_000);

/** What can be wrong with a receiver: the one at `/n` is wrong in the way of number n, counted round. */
const WAYS: readonly Reply[] = [
  { hang: "before_headers" },
  { status: 500, hang: "after_headers" },
  { status: 500, trickle: { chunk: "x", everyMs: 1_000 } },
  { reset: "before_headers" },
  { raw: Buffer.concat([Buffer.from("HTTP/1.1 200 OK\r\nx: "), ...Array(10).fill(mebibyte)]) },
  { status: 500, trickle: { chunk: Buffer.alloc(65_536, "x"), everyMs: 0 } },
  { status: 500, headers: { "content-encoding": "gzip" }, body: gzipSync(Buffer.alloc(50_000_000)) },
  { raw: interim },
  { status: 302, headers: { location: "/" } },
];

const receiver = await startReceiver();
receiver.respond(({ path }) => WAYS[Number(path.slice(1)) % WAYS.length] ?? {});
process.on("message", () => process.send?.({ count: receiver.count }));
process.send?.({ url: receiver.url });
