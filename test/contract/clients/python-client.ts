import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { linesOf, requireProgram, runChild, startChild } from "./child.ts";
import { PROTO_FOLDERS, thirdPartyProtos } from "./protos.ts";
import { remoteClient } from "./remote-client.ts";
import type { OpenClient, SchedulingClient } from "./scheduling-client.ts";

/** Debian's Python: its packages are not seen by any other. */
export const PYTHON = "/usr/bin/python3";

const PACKAGE = "scheduling/v1";
const IMPORTED = [
  "buf/validate/validate.proto",
  "google/api/annotations.proto",
  "google/api/http.proto",
  "google/rpc/error_details.proto",
  "google/rpc/status.proto",
];

/** Python stubs of the contract, made by protoc. */
export interface PythonStubs extends AsyncDisposable {
  readonly open: OpenClient;
}

/** Generates the stubs, in a temporary folder. @throws Error that says what to install when something is missing */
export async function pythonStubs(): Promise<PythonStubs> {
  requireProgram("/usr/bin/protoc", "protobuf-compiler");
  requireProgram("/usr/bin/grpc_python_plugin", "protobuf-compiler-grpc");
  const { code } = await runChild(PYTHON, ["-c", "import grpc, google.protobuf"]);
  if (code !== 0) throw new Error(`${PYTHON} has no grpc: install the Debian package python3-grpcio`);
  thirdPartyProtos();
  const ours = await readdir(join(import.meta.dirname, "../../../proto", PACKAGE));
  const stubs = await mkdtemp(join(tmpdir(), "carillon-python-"));
  const outcome = await runChild("/usr/bin/protoc", [
    ...PROTO_FOLDERS.map((folder) => `-I${folder}`),
    `--python_out=${stubs}`,
    `--grpc_out=${stubs}`,
    "--plugin=protoc-gen-grpc=/usr/bin/grpc_python_plugin",
    ...ours.filter((name) => name.endsWith(".proto")).map((name) => `${PACKAGE}/${name}`),
    ...IMPORTED,
  ]);
  if (outcome.code !== 0) throw new Error(`protoc failed: ${outcome.stderr}`);
  return {
    open: (url, key) => openPythonClient(stubs, url, key),
    [Symbol.asyncDispose]: () => rm(stubs, { recursive: true, force: true }),
  };
}

function openPythonClient(stubs: string, url: string, key = ""): SchedulingClient {
  const script = join(import.meta.dirname, "client.py");
  const child = startChild(PYTHON, ["-B", script, stubs, new URL(url).host, key]);
  const lines = linesOf(child);
  return remoteClient(
    async (command) => {
      child.process.stdin.write(`${JSON.stringify(command)}\n`);
      const { value, done } = await lines.next();
      if (done) throw new Error(`the Python client has ended: ${child.stderr()}`);
      return JSON.parse(value);
    },
    () => child[Symbol.asyncDispose](),
  );
}
