import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** The base URL that the documentation's examples name. */
const DOCUMENTED_BASE = "https://api.infrai.cc";

/** An answer as curl printed it. */
export interface CurlAnswer {
  readonly status: number;
  readonly headers: Headers;
  // biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
  readonly body: any;
}

/**
 * Runs a shell script of curl calls with the real curl and gives its answers in order. The script is run as it is but
 * for the base URL; the key comes in the environment, where the documentation has it. What curl is to print, and that
 * it connects to nothing else, it is told by its configuration file.
 */
export async function curl(script: string, to: { readonly url: string; readonly key: string }): Promise<CurlAnswer[]> {
  const home = await mkdtemp(join(tmpdir(), "carillon-curl-"));
  try {
    const options = ["silent", "show-error", "include", "max-time = 20", "noproxy = *"];
    const onlyTo = `connect-to = "::${new URL(to.url).host}"`;
    await writeFile(join(home, ".curlrc"), [...options, onlyTo, ""].join("\n"));
    const { stdout } = await run("/bin/sh", ["-e", "-c", script.replaceAll(DOCUMENTED_BASE, to.url)], {
      env: { PATH: "/usr/bin:/bin", CURL_HOME: home, HOME: home, INFRAI_API_KEY: to.key },
      timeout: 120_000,
    });
    return stdout.split(/(?=HTTP\/1\.1 \d{3} )/).map(parseAnswer);
  } finally {
    await rm(home, { recursive: true, force: true });
  }
}

function parseAnswer(text: string): CurlAnswer {
  const end = text.indexOf("\r\n\r\n");
  const [statusLine = "", ...lines] = text.slice(0, end).split("\r\n");
  const headers = new Headers();
  for (const line of lines) {
    const colon = line.indexOf(":");
    headers.append(line.slice(0, colon), line.slice(colon + 1).trim());
  }
  return { status: Number(statusLine.split(" ")[1]), headers, body: JSON.parse(text.slice(end + 4)) };
}
