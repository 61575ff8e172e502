/**
 * Gives dependency-cruiser a TypeScript with a JavaScript API, which version 7 has not: the 5.4 that comes with
 * protoc-gen-es (it parses all that we write; a second TypeScript of our own would fight over the `tsc` command).
 * Load it with `node --import`. It goes when dependency-cruiser supports version 7.
 */
import { createRequire, registerHooks } from "node:module";
import { pathToFileURL } from "node:url";

const fromGenerator = createRequire(import.meta.resolve("@bufbuild/protoc-gen-es/package.json"));
const require = createRequire(fromGenerator.resolve("@bufbuild/protoplugin"));
// Looked up now: dependency-cruiser takes a failing import for "no TypeScript here" and then checks nothing.
const main = require.resolve("typescript");
const manifest = require.resolve("typescript/package.json");
if (!/^[56]\./.test(require(manifest).version)) throw new Error(`${main} has no JavaScript API`);

registerHooks({
  resolve(specifier, context, nextResolve) {
    if (specifier === "typescript") return { url: pathToFileURL(main).href, format: "commonjs", shortCircuit: true };
    if (specifier === "typescript/package.json") {
      return { url: pathToFileURL(manifest).href, format: "json", shortCircuit: true };
    }
    return nextResolve(specifier, context);
  },
});
