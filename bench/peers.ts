import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

const MANIFEST = join(import.meta.dirname, "package.json");
const INSTALL_MS = 300_000;

/** The peers' packages by name, with the versions that are measured. */
export function peerVersions(): Record<string, string> {
  return JSON.parse(readFileSync(MANIFEST, "utf8")).dependencies;
}

/** Installs the peers into `bench/node_modules`, exactly as their lock file says, unless they are there already. */
export function installPeers(): void {
  const isCurrent = Object.entries(peerVersions()).every(([name, version]) => {
    const manifest = join(import.meta.dirname, "node_modules", name, "package.json");
    return existsSync(manifest) && JSON.parse(readFileSync(manifest, "utf8")).version === version;
  });
  if (isCurrent) return;
  process.stderr.write("bench: installing the peers\n");
  const args = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
  const { status, error } = spawnSync("npm", args, {
    cwd: import.meta.dirname,
    stdio: ["ignore", "ignore", "inherit"],
    timeout: INSTALL_MS,
  });
  if (status !== 0) throw new Error(`npm could not install the peers: ${error?.message ?? `exit code ${status}`}`);
}

/**
 * Loads a peer. `T` is what the benchmark uses of it: the packages' own types are not there where they are not
 * installed, and the benchmark is checked without them.
 */
export async function loadPeer<T>(name: string): Promise<T> {
  return import(name) as Promise<T>;
}
