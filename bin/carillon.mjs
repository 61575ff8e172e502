#!/usr/bin/env node
/**
 * The command `carillon`. A clone runs its source, so that it never runs an old build; the package has only what was
 * built. Plain JavaScript without dependencies, so that a Node that is too old can say so.
 */
import { existsSync } from "node:fs";

const OLDEST_NODE = [22, 19];

const [major, minor] = process.versions.node.split(".").map(Number);
if (major > OLDEST_NODE[0] || (major === OLDEST_NODE[0] && minor >= OLDEST_NODE[1])) {
  const source = new URL("../src/cli/main.ts", import.meta.url);
  await import(existsSync(source) ? source.href : new URL("../dist/cli/main.js", import.meta.url).href);
} else {
  console.error(
    `carillon: Node ${OLDEST_NODE.join(".")} or newer is needed, and this is ${process.versions.node}. Carillon brings ` +
      "one for common platforms: in the folder that it is installed in, run npx carillon",
  );
  process.exitCode = 1;
}
