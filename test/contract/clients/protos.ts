import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "../../..");

/** Where the contract and what it imports lie: ours, the third-party ones, and `google.rpc.Status`, which is imported by none. */
export const PROTO_FOLDERS: readonly string[] = [
  join(root, "proto"),
  join(root, ".protos"),
  join(root, "node_modules/google-gax/build/protos"),
];

/** Fills `.protos` when it is not there. */
export function thirdPartyProtos(): void {
  if (existsSync(join(root, ".protos"))) return;
  execFileSync(process.execPath, ["scripts/collect-protos.ts"], { cwd: root, timeout: 60_000 });
}
