import { requireProgram, startChild } from "./child.ts";
import type { RestReply, RestTransport } from "./rest-client.ts";

const CURL = "/usr/bin/curl";

/** Starts curl for each request: silent but for errors, unbuffered, with the head of the answer before its body. */
export function curl(url: string, version: "--http1.1" | "--http2-prior-knowledge"): RestTransport {
  requireProgram(CURL, "curl");
  return {
    async send({ method, path, headers, body, signal }): Promise<RestReply> {
      const child = startChild(CURL, [
        ...["-sS", "-N", "-i", version, "-X", method],
        ...Object.entries(headers).flatMap(([name, value]) => ["-H", `${name}: ${value}`]),
        ...(body === undefined ? [] : ["--data-binary", "@-"]),
        url + path,
      ]);
      child.process.stdin.end(body);
      signal?.addEventListener("abort", () => child.process.kill("SIGINT"));
      const output = child.process.stdout[Symbol.asyncIterator]();
      let head = Buffer.alloc(0);
      while (!head.includes("\r\n\r\n")) {
        const { value, done } = await output.next();
        if (done) throw new Error(`curl ended with ${await child.ended}: ${child.stderr()}`);
        head = Buffer.concat([head, value]);
      }
      const end = head.indexOf("\r\n\r\n");
      const lines = head.subarray(0, end).toString();
      async function* rest(): AsyncGenerator<Buffer> {
        await using _child = child;
        yield head.subarray(end + 4);
        for (let next = await output.next(); !next.done; next = await output.next()) yield next.value;
        const code = await child.ended;
        if (code !== 0 && !signal?.aborted) throw new Error(`curl ended with ${code}: ${child.stderr()}`);
      }
      return {
        status: Number(/^HTTP\/\S+ (\d+)/.exec(lines)?.[1]),
        contentType: /^content-type: (.*)$/im.exec(lines)?.[1] ?? "",
        body: rest(),
      };
    },
    async [Symbol.asyncDispose]() {},
  };
}
