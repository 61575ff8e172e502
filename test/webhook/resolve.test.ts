import { createSocket } from "node:dgram";
import { once } from "node:events";
import { expect, test } from "vitest";
import { createLookup } from "../../src/webhook/resolve.ts";

const A = 1;
const AAAA = 28;
const NXDOMAIN = 3;
const SERVFAIL = 2;

/** What a name server says to a question: addresses as bytes, an error code, or nothing at all. */
type Say = (name: string, type: number) => readonly Buffer[] | number | "silence";

/** A DNS server on loopback. Its answers are as few fields of RFC 1035 as resolvers need. */
async function startNameServer(say: Say): Promise<{ readonly server: string } & AsyncDisposable> {
  const socket = createSocket("udp4");
  socket.on("message", (query, from) => {
    const labels: string[] = [];
    let at = 12;
    for (let length = query[at] ?? 0; length > 0; length = query[at] ?? 0) {
      labels.push(query.toString("latin1", at + 1, at + 1 + length));
      at += length + 1;
    }
    const type = query.readUInt16BE(at + 1);
    const said = say(labels.join("."), type);
    if (said === "silence") return;
    const records = typeof said === "number" ? [] : said;
    const head = Buffer.from(query.subarray(0, 12));
    head.writeUInt16BE(0x8180 | (typeof said === "number" ? said : 0), 2);
    head.writeUInt16BE(1, 4);
    head.writeUInt16BE(records.length, 6);
    head.writeUInt32BE(0, 8);
    const answers = records.map((address) => {
      const record = Buffer.alloc(12);
      record.writeUInt16BE(0xc00c, 0);
      record.writeUInt16BE(type, 2);
      record.writeUInt16BE(1, 4);
      record.writeUInt16BE(address.length, 10);
      return Buffer.concat([record, address]);
    });
    socket.send(Buffer.concat([head, query.subarray(12, at + 5), ...answers]), from.port, from.address);
  });
  socket.bind(0, "127.0.0.1");
  await once(socket, "listening");
  return {
    server: `127.0.0.1:${socket.address().port}`,
    async [Symbol.asyncDispose]() {
      const closed = once(socket, "close");
      socket.close();
      await closed;
    },
  };
}

const v4 = Buffer.from([8, 8, 8, 8]);
const v6 = Buffer.from("26064700000000000000000000001111", "hex");

async function lookUp(say: Say, host = "name.example.com", signal = new AbortController().signal) {
  await using names = await startNameServer(say);
  return await createLookup([names.server])(host, signal);
}

test("gives the addresses of both families", async () => {
  expect(await lookUp((_, type) => (type === A ? [v4] : [v6]))).toEqual(["8.8.8.8", "2606:4700::1111"]);
});

test("goes on with one family when the other is missing, broken or silent", async () => {
  for (const other of [[], NXDOMAIN, SERVFAIL, "silence"] as const) {
    expect(await lookUp((_, type) => (type === A ? [v4] : other)), String(other)).toEqual(["8.8.8.8"]);
  }
  expect(await lookUp((_, type) => (type === AAAA ? [v6] : []))).toEqual(["2606:4700::1111"]);
});

test("asks the operating system for a name that DNS does not know", async () => {
  expect(await lookUp(() => NXDOMAIN, "localhost")).toContain("127.0.0.1");
});

test("fails when DNS fails, without asking anybody else", async () => {
  await expect(lookUp(() => SERVFAIL)).rejects.toMatchObject({ code: "ESERVFAIL" });
});

test("ends with the signal", async () => {
  const caller = new AbortController();
  const lookup = lookUp(
    () => {
      caller.abort();
      return "silence";
    },
    "name.example.com",
    caller.signal,
  );
  await expect(lookup).rejects.toMatchObject({ code: "ECANCELLED" });
});
