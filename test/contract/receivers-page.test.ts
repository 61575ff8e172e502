import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { newSecret, parseSigningKey, sign } from "../../src/webhook/sign.ts";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { projectSecret } from "../support/signing.ts";
import { ok } from "./calls.ts";
import { type Endpoints, openEndpoints } from "./endpoints.ts";

const PAGE = readFileSync(join(import.meta.dirname, "../../docs/receivers.md"), "utf8");

/** The programs of the page in that language, in order. */
function programs(language: string): string[] {
  return [...PAGE.matchAll(new RegExp(`\`\`\`${language}\n([^]*?)\`\`\``, "g"))].map(([, text = ""]) => text);
}

function program(language: string, index = 0): string {
  return programs(language)[index] ?? expect.fail(`the page has no such program in ${language}`);
}

const typescript = (text: string) => [process.execPath, "--input-type=module-typescript", "-e", text, "verify.ts"];
const directory = mkdtempSync(join(tmpdir(), "carillon-receivers-"));

/** Runs a Go program of the page. */
function go(index: number): readonly string[] {
  const file = join(directory, `verify-${index}.go`);
  writeFileSync(file, program("go", index));
  return ["go", "run", file];
}

/** How each program that knows the secret is run. */
const BY_SECRET: Readonly<Record<string, readonly string[]>> = {
  TypeScript: typescript(program("ts")),
  Python: ["python3", "-c", program("python")],
  "curl and openssl": ["sh", "-c", program("sh"), "sh"],
  Go: go(0),
};

/** How each program that knows the public keys alone is run. */
const BY_KEYS: Readonly<Record<string, readonly string[]>> = {
  TypeScript: typescript(program("ts", 1)),
  Python: ["python3", "-c", program("python", 1)],
  "curl and openssl": ["sh", "-c", program("sh", 1), "sh"],
  Go: go(1),
};

/** Without the language or what a program imports there is nothing to run. */
function isThere([command = "", , text = ""]: readonly string[]): boolean {
  const imports = text.includes("cryptography") ? ["-c", "import cryptography"] : ["version"];
  const { error, status } = spawnSync(command, imports);
  return error === undefined && (status === 0 || imports.length === 1);
}

let carillon: TestCarillon;
let endpoints: Endpoints;
let keySetUrl: string;

beforeAll(async () => {
  carillon = await startTestCarillon();
  endpoints = await openEndpoints();
  ok(await carillon.rest("POST", "/signing/rotate_key", {}));
  ok(await carillon.rest("POST", "/signing/rotate_key", {}));
  keySetUrl = carillon.url + ok(await carillon.rest("GET", "/signing/list")).jwks_path;
});
afterAll(async () => {
  await endpoints[Symbol.asyncDispose]();
  await carillon[Symbol.asyncDispose]();
  rmSync(directory, { recursive: true });
});

interface Signed {
  readonly id: string;
  readonly timestamp: string;
  readonly signatures: string;
  readonly body: Buffer;
}

/** A request as a receiver of Carillon's gets it, signed as its project signs, or with a secret of its own. */
async function delivered(secret?: string): Promise<Signed> {
  const hook = endpoints.open();
  const payload = { total: "12,50 €" };
  const run_at = "2020-01-01T00:00:00Z";
  ok(await carillon.rest("POST", "/task/schedule", { url: hook.url, payload, run_at, ...(secret && { secret }) }));
  const { headers, body } = await hook.next();
  const [id = "", timestamp = "", signatures = ""] = ["id", "timestamp", "signature"].map((name) =>
    String(headers[`webhook-${name}`]),
  );
  return { id, timestamp, signatures, body };
}

/** The exit code of a program that is given a request, and what it verifies it by. */
async function verdict(run: readonly string[], { id, timestamp, signatures, body }: Signed, by: string) {
  const [command = "", ...args] = run;
  const child = spawn(command, [...args, id, timestamp, signatures, by], {
    stdio: ["pipe", "ignore", "ignore"],
    timeout: 110_000,
    env: { ...process.env, GOCACHE: join(directory, "cache"), GO111MODULE: "off" },
  });
  child.stdin.on("error", () => {}).end(body);
  const [code] = await once(child, "exit");
  return code;
}

const changed = (request: Signed): Signed => ({ ...request, body: Buffer.from(`${request.body} `) });
const late = (request: Signed): Signed => ({ ...request, timestamp: String(Number(request.timestamp) + 1) });

describe.each(Object.entries(BY_SECRET))("the program on the page for receivers in %s", (_, run) => {
  test.skipIf(!isThere(run))("takes what is signed by its secret, and nothing else", { timeout: 120_000 }, async () => {
    const given = [
      [await delivered(), await projectSecret(carillon.database.db)],
      [await delivered("a secret of mine"), "a secret of mine"],
    ] as const;
    for (const [request, secret] of given) {
      expect(await verdict(run, request, secret)).toBe(0);
      expect(await verdict(run, changed(request), secret)).toBe(1);
      expect(await verdict(run, late(request), secret)).toBe(1);
      expect(await verdict(run, request, newSecret())).toBe(1);
    }
    const secret = newSecret();
    const timestampSeconds = Math.floor(Date.now() / 1_000) - 400;
    const old = sign({ id: "run_1", timestampSeconds, body: Buffer.from("1"), keys: [parseSigningKey("v1", secret)] });
    const request = { id: "run_1", timestamp: String(timestampSeconds), body: Buffer.from("1") };
    expect(await verdict(run, { ...request, signatures: old["webhook-signature"] }, secret)).toBe(1);
  });
});

describe.each(Object.entries(BY_KEYS))("the program on the page in %s that knows the public keys alone", (_, run) => {
  test.skipIf(!isThere(run))("takes what their pair signed, and nothing else", { timeout: 120_000 }, async () => {
    const request = await delivered();
    expect(await verdict(run, request, keySetUrl)).toBe(0);
    expect(await verdict(run, changed(request), keySetUrl)).toBe(1);
    expect(await verdict(run, late(request), keySetUrl)).toBe(1);
    const byPairs = request.signatures.split(" ").filter((signature) => signature.startsWith("v1a,"));
    expect(byPairs).toHaveLength(2);
    for (const signatures of byPairs) expect(await verdict(run, { ...request, signatures }, keySetUrl)).toBe(0);
    expect(await verdict(run, { ...request, signatures: request.signatures.split(" ")[0] ?? "" }, keySetUrl)).toBe(1);
  });
});
