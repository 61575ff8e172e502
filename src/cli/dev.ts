import { styleText } from "node:util";
import type { Config } from "../config.ts";
import { DEVELOPMENT_PROJECT } from "../development-project.ts";
import type { Carillon } from "../main.ts";
import { loadCheckedConfig, type ServeOptions, serverLogger, settingsOf } from "./load-config.ts";
import { baseUrl, runServer } from "./run-server.ts";

/** `carillon dev`: everything in one process, on loopback, with a key that is printed. Resolves with the exit code. */
export async function dev(options: ServeOptions = {}): Promise<number> {
  const config = loadCheckedConfig("development", settingsOf(options));
  const log = serverLogger(config);
  return runServer(config, log, (carillon) => process.stdout.write(banner(carillon, config, process.stdout.isTTY)));
}

function banner(carillon: Carillon, config: Config, colored: boolean): string {
  const paint = (format: Parameters<typeof styleText>[0], text: string) => (colored ? styleText(format, text) : text);
  const url = baseUrl(carillon.address);
  const key = carillon.developmentKey ?? "";
  const { dataDir, clockAt } = carillon;
  const rows: [string, string][] = [
    ["API", `${url}/v1/scheduling`],
    ["gRPC", `${url.replace(/^https?:\/\//, "")} (the same port; gRPC-Web and Connect too)`],
    ["Health", `${url}/healthz, ${url}/readyz`],
    ...(clockAt === undefined
      ? []
      : [
          ["Clock", `virtual: it stands at ${clockAt.toISOString()}`] satisfies [string, string],
          ["Move it", "carillon clock advance --seconds 3600"] satisfies [string, string],
        ]),
    ["API key", `${key} (project ${DEVELOPMENT_PROJECT})`],
    ...(dataDir === undefined
      ? [["Data", "in the PostgreSQL that CARILLON_DATABASE_URL or DATABASE_URL names"] satisfies [string, string]]
      : [
          ["Data", dataDir] satisfies [string, string],
          ["Delete it", `stop Carillon, then: rm -rf ${shellQuote(dataDir)}`] satisfies [string, string],
        ]),
  ];
  const width = Math.max(...rows.map(([label]) => label.length));
  return [
    "",
    paint(
      ["bold", "yellow"],
      "DEVELOPMENT MODE. Not for production: the key is printed and loopback targets are open.",
    ),
    `Carillon is ready. It listens on ${config.host} only; for production see npx carillon serve --help.`,
    "",
    ...rows.map(([label, value]) => `  ${paint("bold", label.padEnd(width))}  ${value}`),
    "",
    "Publish a message:",
    "",
    `  ${curlLine(url, key)}`,
    "",
    "",
  ].join("\n");
}

/** One line to paste into a shell. */
function curlLine(url: string, key: string): string {
  return [
    `curl ${url.startsWith("https") ? "-k " : ""}-X POST ${url}/v1/scheduling/queue/publish`,
    `-H ${shellQuote(`Authorization: Bearer ${key}`)}`,
    `-H 'Content-Type: application/json'`,
    `-d '{"queue":"orders","payload":{"hello":"world"}}'`,
  ].join(" ");
}

/** The text as one word of a POSIX shell. */
function shellQuote(text: string): string {
  return /^[A-Za-z0-9_./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
