import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { build } from "esbuild";
import { type Browser, chromium, type Page } from "playwright-core";
import { requireProgram } from "./child.ts";
import type { PageApi } from "./page.ts";
import { remoteClient } from "./remote-client.ts";
import { codeName, type SchedulingClient } from "./scheduling-client.ts";

const CHROMIUM = "/usr/bin/chromium";

/** A name for this machine that only the browser of the tests knows, to be an origin that is not a loopback one. */
export const FOREIGN_HOST = "page.test";

/** A browser, and a server of a page with a client, on a port of its own. */
export interface WebClient extends AsyncDisposable {
  /** The port of the page, under 127.0.0.1 and FOREIGN_HOST. */
  readonly port: number;
  /** Opens the page on `pageHost` and connects its client to Carillon at `url`. */
  open(
    pageHost: string,
    protocol: "connect" | "grpc-web",
    url: string,
    key: string | undefined,
  ): Promise<SchedulingClient>;
}

/** Starts both. @throws Error that says what to install when the browser is missing */
export async function startWebClient(): Promise<WebClient> {
  requireProgram(CHROMIUM, "chromium");
  await using started = new AsyncDisposableStack();
  const script = await bundle();
  const server = createServer((request, response) => {
    const isScript = request.url === "/page.js";
    response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
    response.end(isScript ? script : '<!doctype html><title>client</title><script src="/page.js"></script>');
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  started.defer(() => {
    server.closeAllConnections();
    server.close();
  });
  const browser = await chromium.launch({
    executablePath: CHROMIUM,
    timeout: 30_000,
    args: [
      ...["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
      ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
      // No name leads anywhere but to this machine.
      `--host-resolver-rules=MAP ${FOREIGN_HOST} 127.0.0.1,MAP * ~NOTFOUND,EXCLUDE 127.0.0.1`,
    ],
  });
  started.defer(() => browser.close());
  const owned = started.move();
  const { port } = server.address() as AddressInfo;
  return {
    port,
    open: (pageHost, protocol, url, key) => openPage(browser, `http://${pageHost}:${port}/`, protocol, url, key),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function openPage(
  browser: Browser,
  pageUrl: string,
  ...args: Parameters<PageApi["open"]>
): Promise<SchedulingClient> {
  const page: Page = await browser.newPage();
  page.setDefaultTimeout(20_000);
  await page.goto(pageUrl);
  await page.evaluate((given) => {
    (globalThis as unknown as { carillonPage: PageApi }).carillonPage.open(...given);
  }, args);
  return remoteClient(
    async (command) => {
      const answer = await page.evaluate(
        (given) => (globalThis as unknown as { carillonPage: PageApi }).carillonPage.carryOut(given),
        command,
      );
      return answer.refused === undefined
        ? answer
        : { refused: { ...answer.refused, code: codeName(answer.refused.code) } };
    },
    () => page.close(),
  );
}

async function bundle(): Promise<string> {
  const { outputFiles } = await build({
    entryPoints: [join(import.meta.dirname, "page.ts")],
    bundle: true,
    format: "iife",
    platform: "browser",
    write: false,
    logLevel: "error",
  });
  return outputFiles[0]?.text ?? "";
}
