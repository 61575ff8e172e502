import { InvalidArgumentError, Option } from "commander";
import { clientEnvironment } from "../../config.ts";
import { CommandError, EXIT } from "../failure.ts";
import type { Connection } from "./client.ts";

const DEFAULT_URL = "http://127.0.0.1:7070";

/** What `--url` and its like say. */
export interface ConnectionValues {
  readonly url?: string;
  readonly key?: string;
  /** In seconds. */
  readonly timeout?: number;
}

/** The options that say where the server is. They stand before the command's words, or after them. */
export function connectionOptions(): Option[] {
  return [
    new Option("--url <url>", `server to call (default: CARILLON_URL, or ${DEFAULT_URL})`),
    new Option("--key <key>", "API key (default: CARILLON_API_KEY, which other users of this machine cannot see)"),
    new Option("--timeout <seconds>", "longest wait for an answer, 0 for no limit (default: 30)").argParser(seconds),
  ];
}

/** @throws CommandError when there is no key, or the address is none. */
export function connectionFrom({ url, key, timeout = 30 }: ConnectionValues): Connection {
  const environment = clientEnvironment();
  const address = url ?? environment.url ?? DEFAULT_URL;
  if (!/^https?:\/\//.test(address) || !URL.canParse(address)) {
    throw new CommandError(`${address} is no http or https address`, { exitCode: EXIT.usage });
  }
  const secret = key ?? environment.key;
  if (secret === undefined) {
    throw new CommandError("no API key: set CARILLON_API_KEY, or pass --key", { exitCode: EXIT.usage });
  }
  return { url: address.replace(/\/+$/, ""), key: secret, timeoutMs: timeout * 1_000 };
}

function seconds(text: string): number {
  const value = Number(text);
  if (!/^\d+(\.\d+)?$/.test(text) || value > 86_400) throw new InvalidArgumentError("It must be 0 to 86400 seconds.");
  return value;
}
