import { SETTINGS } from "../src/settings.ts";

/** The setting that has connect-node's own adapter answer the calls that the unary dispatcher answers. */
const DISPATCHER = "CARILLON_UNARY_DISPATCHER";

/** The settings of a node behind connect-node's own adapter, or undefined where the node has no such choice. */
export function referenceSettings(): Readonly<Record<string, string>> | undefined {
  const hasChoice = Object.values(SETTINGS).some(({ env }) => (env as string) === DISPATCHER);
  return hasChoice ? { [DISPATCHER]: "off" } : undefined;
}
