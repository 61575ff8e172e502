import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import type { GetJwksResponseSchema, JwksService } from "../../gen/scheduling/v1/signing_service_pb.js";
import { formatId, parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import { publicKeysOf } from "../store/signing-keys.ts";
import type { AppContext } from "./context.ts";

/** How long receivers may keep a key set, in seconds. */
const CACHE_SECONDS = 300;
/** How long an answer of the database is given to all who ask, in milliseconds. */
const REMEMBER_MS = 1_000;
/** Most key sets that are remembered. */
const MAX_REMEMBERED = 1_000;
/** Most that are looked up at a time: anybody may ask for what does not exist, and each of those is a query. */
const MAX_LOOKUPS = 20;

type KeySet = MessageInitShape<typeof GetJwksResponseSchema> | undefined;

/** The public keys of projects, for anybody. */
export function jwksService(app: AppContext): ServiceImpl<typeof JwksService> {
  const remembered = new Map<string, { readonly keySet: Promise<KeySet>; readonly untilMs: number }>();
  let lookups = 0;

  async function lookUp(projectId: string): Promise<KeySet> {
    lookups += 1;
    try {
      const rows = await publicKeysOf(app.db, projectId);
      return (
        rows && {
          keys: rows.map((row) => ({
            kty: "OKP",
            crv: "Ed25519",
            x: row.public_key?.toString("base64url") ?? "",
            kid: formatId("sigk", row.key_id),
            use: "sig",
            alg: "EdDSA",
          })),
        }
      );
    } finally {
      lookups -= 1;
    }
  }

  function find(projectId: string): Promise<KeySet> {
    const known = remembered.get(projectId);
    if (known !== undefined && performance.now() < known.untilMs) return known.keySet;
    if (lookups >= MAX_LOOKUPS) throw new Refusal("TOO_BUSY");
    const keySet = lookUp(projectId);
    remembered.delete(projectId);
    remembered.set(projectId, { keySet, untilMs: performance.now() + REMEMBER_MS });
    // A failure is told to those who wait for it, and to nobody else.
    keySet.catch(() => remembered.delete(projectId));
    const oldest = remembered.keys().next();
    if (remembered.size > MAX_REMEMBERED && !oldest.done) remembered.delete(oldest.value);
    return keySet;
  }

  return {
    async getJwks(req, ctx) {
      const projectId = parseId("prj", req.projectId);
      const keySet = projectId === undefined ? undefined : await find(projectId);
      if (keySet === undefined) throw new Refusal("KEY_SET_NOT_FOUND", { project_id: req.projectId });
      ctx.responseHeader.set("cache-control", `public, max-age=${CACHE_SECONDS}`);
      return keySet;
    },
  };
}
