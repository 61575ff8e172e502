/**
 * Fills `.protos/` with the third-party proto files that ours import, out of npm packages, so that generating needs no
 * network and the repository holds no copies. The folder is git-ignored and rebuilt on every run.
 */
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { createRegistry, equals, fromBinary } from "@bufbuild/protobuf";
import {
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
  file_google_protobuf_descriptor,
} from "@bufbuild/protobuf/wkt";
import { file_buf_validate_validate } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import { printProto } from "./print-proto.ts";

/** npm package, its file below the package's folder, the import path in `.protos/`. */
const COPIES = [
  ["google-gax", "build/protos/google/api/annotations.proto", "google/api/annotations.proto"],
  ["google-gax", "build/protos/google/api/http.proto", "google/api/http.proto"],
  ["google-gax", "build/protos/google/rpc/error_details.proto", "google/rpc/error_details.proto"],
  ["grpc-health-check", "proto/health/v1/health.proto", "grpc/health/v1/health.proto"],
  ["@grpc/reflection", "build/proto/grpc/reflection/v1/reflection.proto", "grpc/reflection/v1/reflection.proto"],
  [
    "@grpc/reflection",
    "build/proto/grpc/reflection/v1alpha/reflection.proto",
    "grpc/reflection/v1alpha/reflection.proto",
  ],
] as const;

/** protovalidate's npm package carries the descriptor of this file, not the file. */
const VALIDATE = "buf/validate/validate.proto";

const registry = createRegistry(file_buf_validate_validate, file_google_protobuf_descriptor);
const root = join(import.meta.dirname, "..");
// Filled beside the real folder and moved over it: a reader never sees a half-filled one.
const building = mkdtempSync(join(root, ".protos-"));
try {
  for (const [packageName, from, to] of COPIES) {
    mkdirSync(dirname(join(building, to)), { recursive: true });
    cpSync(join(root, "node_modules", packageName, from), join(building, to));
  }
  mkdirSync(dirname(join(building, VALIDATE)), { recursive: true });
  writeFileSync(join(building, VALIDATE), printProto(file_buf_validate_validate, registry));
  verifyPrinted();
  rmSync(join(root, ".protos"), { recursive: true, force: true });
  renameSync(building, join(root, ".protos"));
} finally {
  rmSync(building, { recursive: true, force: true });
}

/** Compiles the printed file and compares it with the descriptor that it was printed from. Throws where they differ. */
function verifyPrinted(): void {
  const image = execFileSync("buf", ["build", ".", "--exclude-source-info", "--as-file-descriptor-set", "-o", "-"], {
    cwd: building,
    maxBuffer: 16 * 1024 * 1024,
    timeout: 60_000,
  });
  const compiled = fromBinary(FileDescriptorSetSchema, image).file.find((file) => file.name === VALIDATE);
  const original = file_buf_validate_validate.proto;
  if (!compiled || !equals(FileDescriptorProtoSchema, compiled, original, { registry, unknown: true })) {
    throw new Error(`${VALIDATE}: compiling the printed file does not give the descriptor of @bufbuild/protovalidate`);
  }
}
