/**
 * The layers of ARCHITECTURE.md as rules: imports point downwards only.
 *
 *   main, cli  >  http, worker  >  rest, rpc, webhook  >  store  >  db  >  domain  >  errors, config, log, metrics
 *
 * vault/ stands below webhook, rpc, main and cli, and knows only domain and config.
 * unary/ stands beside rest and rpc and knows nothing of ours.
 *
 * Type-only imports count: they say what a file knows of.
 */

const LEAVES = "^src/(errors|config|settings|log|metrics)\\.ts$";

/** Files in `folders` may import, of ours, only themselves and what `below` matches. */
function only(name, folders, below, comment) {
  return {
    name,
    comment,
    severity: "error",
    from: { path: folders },
    to: { path: "^(src|gen|test|bench|console|scripts)/", pathNot: [folders, ...below] },
  };
}

/** Nothing outside `allowed` imports `target`. Tests and benchmarks may import anything. */
function onlyFrom(name, target, allowed, comment, extra = {}) {
  return {
    name,
    comment,
    severity: "error",
    from: { path: "^(src|console)/", pathNot: allowed },
    to: { path: target, ...extra },
  };
}

export default {
  forbidden: [
    {
      name: "no-circular",
      comment: "Of two files that import each other neither can be read, tested or moved alone.",
      severity: "error",
      from: {},
      to: { circular: true },
    },
    {
      name: "resolvable",
      comment: "An import that leads nowhere fails at run time, on the path that nobody tried.",
      severity: "error",
      from: {},
      to: { couldNotResolve: true },
    },
    {
      name: "no-dev-dependency-in-src",
      comment: "What is published runs without devDependencies.",
      severity: "error",
      from: { path: "^src/" },
      to: { dependencyTypes: ["npm-dev"], dependencyTypesNot: ["type-only"] },
    },

    only(
      "leaves",
      LEAVES,
      ["^src/errors\\.ts$"],
      "Every layer uses these, so they use none; config and log may refuse in the terms of errors.",
    ),
    only(
      "domain",
      "^src/domain/",
      ["^src/errors\\.ts$"],
      "Decisions are pure: with no configuration, log, SQL or protobuf at hand a table of cases tests them.",
    ),
    {
      name: "domain-is-pure",
      comment: "No clock, no I/O, no SQL, no protobuf: only computation libraries and node:crypto (hashes).",
      severity: "error",
      from: { path: "^src/domain/" },
      to: {
        path: "(^|/)node_modules/|^(node:)?[a-z_/]+$",
        pathNot: "(^|/)node_modules/(cron-parser|luxon|@types)/|^(node:)?(crypto|buffer)$",
      },
    },
    only("db", "^src/db/", ["^src/domain/", LEAVES], "The connection and the schema serve every store file."),
    only("store", "^src/store/", ["^src/db/", "^src/domain/", LEAVES], "SQL knows neither callers nor protocols."),
    only(
      "vault",
      "^src/vault/",
      ["^src/domain/", LEAVES],
      "It seals and opens text for a place. What is stored where, and who asks, is nothing to it.",
    ),
    only(
      "webhook",
      "^src/webhook/",
      ["^src/domain/", LEAVES],
      "One outbound POST, done safely. It knows no queue, no cron job and no database.",
    ),
    only(
      "unary",
      "^src/unary/",
      [],
      "A short way for the unary calls of any ConnectRouter: it knows Connect and Node, no contract and no refusal.",
    ),
    only(
      "rest",
      "^src/rest/",
      ["^src/rpc/refusal\\.ts$", "^src/unary/", "^src/domain/", LEAVES, "^gen/"],
      "The transcoder is generic: it reads descriptors and holds no handler and no method's name. It shares only how a " +
        "refusal becomes a Connect error, and how a unary call runs.",
    ),
    only(
      "rpc",
      "^src/rpc/",
      ["^src/(store|db|webhook|vault|domain)/", LEAVES, "^gen/"],
      "A handler decodes, calls the store, encodes. It never meets worker/: the two share rows, not code.",
    ),
    only(
      "worker",
      "^src/worker/",
      ["^src/(store|db|webhook|domain)/", LEAVES],
      "The clock's side. It never meets rpc/: a run is settled the same way whoever asked for it.",
    ),
    only(
      "http",
      "^src/http/",
      ["^src/(rest|rpc|unary|store|db|webhook|domain)/", LEAVES, "^gen/"],
      "The port carries requests; it starts no worker and no command.",
    ),
    only(
      "main",
      "^src/(main|ready-database|development-project)\\.ts$",
      ["^src/(http|worker|rest|rpc|unary|webhook|vault|store|db|domain)/", LEAVES],
      "The composition root puts the layers together; commands call it.",
    ),
    {
      name: "cli-serves-no-calls",
      comment:
        "A command starts the server by main.ts, works on the database by store/, or is a client that knows gen/ and no " +
        "more of the server than others. Calls and workers are main's.",
      severity: "error",
      from: { path: "^src/cli/" },
      to: { path: "^src/(http|worker|rest|rpc)/" },
    },
    {
      name: "cli-is-on-top",
      comment: "Commands are entry points: nothing in src/ needs one.",
      severity: "error",
      from: { path: "^src/", pathNot: "^src/cli/" },
      to: { path: "^src/cli/" },
    },
    {
      name: "src-stands-alone",
      comment: "What is published does not reach into what is not.",
      severity: "error",
      from: { path: "^src/" },
      to: { path: "^(test|bench|console|scripts)/" },
    },
    {
      name: "console-is-a-client",
      comment: "The web page can do what any client of the contract can, and nothing else.",
      severity: "error",
      from: { path: "^console/" },
      to: { path: "^(src|test|bench|scripts)/" },
    },

    onlyFrom(
      "gen-at-the-edge",
      "^gen/",
      "^src/(rest|rpc|cli|http)/|^console/",
      "Generated messages stop where requests are decoded: a change of the contract must not reach rows or decisions.",
    ),
    onlyFrom(
      "kysely-in-store-and-db",
      "(^|/)node_modules/kysely/",
      "^src/(store|db)/",
      "All SQL lies in store/ and db/. Elsewhere the types may be named.",
      { dependencyTypesNot: ["type-only"] },
    ),
    onlyFrom("pg-in-db", "(^|/)node_modules/(@types/)?pg/", "^src/db/", "One place opens connections.", {
      dependencyTypesNot: ["type-only"],
    }),
    onlyFrom(
      "one-way-out",
      "(^|/)node_modules/undici/",
      "^src/webhook/",
      "Every outbound request passes the guard, so only the guarded connector has an HTTP client.",
    ),
    onlyFrom(
      "one-place-dials",
      "^(node:)?(net|tls|dgram)$",
      // address.ts reads texts, doctor.ts tries whether the port is free.
      "^src/webhook/(connect|address)\\.ts$|^src/cli/doctor\\.ts$",
      "Sockets are opened by the guarded connector, to addresses that the guard has passed, and by pg.",
      { dependencyTypesNot: ["type-only"] },
    ),
    onlyFrom(
      "one-place-resolves",
      "^(node:)?dns(/promises)?$",
      // doctor.ts asks whether there is a DNS server at all.
      "^src/webhook/resolve\\.ts$|^src/cli/doctor\\.ts$",
      "A name is resolved once, where its addresses are judged: who resolves it again may be told something else.",
      { dependencyTypesNot: ["type-only"] },
    ),
    onlyFrom(
      "http-modules-serve",
      "^(node:)?(http|https|http2)$",
      // unary/ takes names of headers. test/contract/one-way-out.test.ts shows that none of these sends a request.
      "^src/(http|unary)/|^src/cli/listen\\.ts$",
      "Node's HTTP modules are clients as well as servers; outside of the port they could only be clients.",
      { dependencyTypesNot: ["type-only"] },
    ),
    onlyFrom(
      "processes-run-postgres",
      "^(node:)?(child_process|worker_threads)$",
      "^src/db/embedded[a-z-]*\\.ts$",
      "What another process dials, no guard sees. The only one that is started is the embedded PostgreSQL.",
      { dependencyTypesNot: ["type-only"] },
    ),
  ],
  options: {
    // Parsed by TypeScript 6 (scripts/typescript-6-hook.mjs), which tells type-only imports apart.
    tsPreCompilationDeps: true,
    doNotFollow: { path: ["(^|/)node_modules/", "^gen/"] },
    exclude: { path: "^(dist|coverage)/" },
    enhancedResolveOptions: {
      extensions: [".ts", ".js", ".mjs", ".json"],
      exportsFields: ["exports"],
      conditionNames: ["import", "node", "default", "types"],
    },
  },
};
