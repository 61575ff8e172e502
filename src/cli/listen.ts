import { once } from "node:events";
import { createServer, type IncomingMessage } from "node:http";
import { type Config, dataHome, listenSecret } from "../config.ts";
import { connect } from "../db/connect.ts";
import { findStorage, keptFile } from "../db/storage.ts";
import { openVault, VAULT_FILE } from "../vault/keys.ts";
import { isOfKeyPair } from "../webhook/key-pair.ts";
import { isSecret, verify } from "../webhook/sign.ts";
import { CommandError } from "./failure.ts";
import { loadCheckedConfig } from "./load-config.ts";
import { readSigningSecret } from "./projects.ts";

export interface ListenOptions {
  readonly port: number;
  /** What every request is answered with. */
  readonly status: number;
  readonly secret?: string;
  /** The project whose signing secret counts where no secret is named. */
  readonly project: string;
}

/** Larger than the largest payload. What is beyond it is not read. */
const MAX_BODY = 16 * 1_048_576;
/** Most characters of a body that are printed. */
const MAX_SHOWN = 10_000;

/** `carillon listen`: a receiver on loopback that prints what it gets and whether the signature holds. Runs until SIGINT or SIGTERM. */
export async function listen({ port, status, secret, project }: ListenOptions): Promise<number> {
  const config = loadCheckedConfig("tool");
  const named = secret ?? listenSecret();
  if (named !== undefined && !isSecret(named) && !isOfKeyPair(named))
    throw new CommandError("the secret is malformed: whsec_ and base64");
  const findSecret = rememberFound(async () => named ?? (await projectSecret(config, project)));

  const stop = new AbortController();
  process.once("SIGINT", () => stop.abort());
  process.once("SIGTERM", () => stop.abort());
  const server = createServer(async (request, response) => {
    try {
      const body = await readBody(request);
      console.log(describe(request, body, await findSecret()));
      response.writeHead(status, { "content-type": "application/json" }).end(`{"received":${body.length}}\n`);
    } catch (error) {
      console.error(`carillon: ${error instanceof Error ? error.message : error}`);
      response.destroy();
    }
  });
  server.listen(port, "127.0.0.1");
  try {
    await once(server, "listening");
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    throw new CommandError(code === "EADDRINUSE" ? `port ${port} is in use; name another with --port` : `${error}`);
  }
  const address = server.address();
  const bound = typeof address === "object" && address !== null ? address.port : port;
  console.log(
    `Listening on http://127.0.0.1:${bound}/ and answering ${status}. Send cron jobs, tasks or pushes there.`,
  );
  if ((await findSecret()) === undefined) {
    console.log(`No secret is known yet: start carillon dev, or name one with --secret.`);
  }

  if (!stop.signal.aborted) await once(stop.signal, "abort");
  server.close();
  server.closeAllConnections();
  return 0;
}

function describe(request: IncomingMessage, body: Buffer, secret: string | undefined): string {
  const headers = Object.entries(request.headers).filter(([name]) => /^(webhook-|carillon-|content-type$)/.test(name));
  const text = body.toString("utf8");
  return [
    "",
    `${new Date().toISOString()} ${request.method} ${printable(request.url ?? "")}`,
    ...headers.map(([name, value]) => `  ${name}: ${printable(String(value))}`),
    `  ${verdict(request, body, secret)}`,
    ...printable(text.slice(0, MAX_SHOWN))
      .split("\n")
      .map((line) => `  | ${line}`),
    ...(text.length > MAX_SHOWN ? [`  | … (${body.length} bytes in all)`] : []),
  ].join("\n");
}

function verdict(request: IncomingMessage, body: Buffer, secret: string | undefined): string {
  if (request.headers["webhook-signature"] === undefined) return "signature: MISSING";
  if (secret === undefined) return "signature: not checked, as no secret is known";
  const nowSeconds = Date.now() / 1_000;
  if (verify(request.headers, body, secret, { nowSeconds })) return "signature: valid";
  const wouldHold = verify(request.headers, body, secret, { nowSeconds, toleranceSeconds: Number.MAX_SAFE_INTEGER });
  return wouldHold ? "signature: INVALID, its timestamp is over 5 minutes off" : "signature: INVALID for this secret";
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

/** The text with control characters shown instead of obeyed: a body must not drive the terminal. */
function printable(text: string): string {
  return text.replace(CONTROL, (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

async function readBody(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > MAX_BODY) throw new Error(`a body of more than ${MAX_BODY} bytes was cut off`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** The signing secret of the project, when a database is at hand without starting one. */
async function projectSecret(config: Config, project: string): Promise<string | undefined> {
  const storage = await findStorage({
    databaseUrl: config.databaseUrl?.reveal(),
    dataDir: config.dataDir,
    dataHome: dataHome(),
    virtualClock: config.virtualClock,
    log: () => {},
  });
  if (storage === undefined) return undefined;
  const db = connect({ url: storage.url, poolSize: 1 });
  try {
    return await readSigningSecret(db, project, () =>
      openVault(config, () => keptFile(storage.dataDir, dataHome(), VAULT_FILE)),
    );
  } catch {
    return undefined;
  } finally {
    await db.destroy();
  }
}

/** Asks `find` until it has found something, and then no more. */
function rememberFound<T>(find: () => Promise<T | undefined>): () => Promise<T | undefined> {
  let found: T | undefined;
  return async () => {
    found ??= await find();
    return found;
  };
}
