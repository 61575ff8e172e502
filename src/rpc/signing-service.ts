import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  EndSigningKeyResponseSchema,
  RotateKeyResponseSchema,
  RotateSecretResponseSchema,
  SigningAlgorithm,
  type SigningKeySchema,
  type SigningService,
} from "../../gen/scheduling/v1/signing_service_pb.js";
import type { SigningKeyRow } from "../db/schema.ts";
import { formatId, parseId } from "../domain/ids.ts";
import { keyPlace } from "../domain/signing-key.ts";
import { Refusal } from "../errors.ts";
import { endSigningKey, listSigningKeys, replaceSigningKey } from "../store/signing-keys.ts";
import { formatPublicKey, newKeyPair } from "../webhook/key-pair.ts";
import { newSecret } from "../webhook/sign.ts";
import { type AppContext, projectOf } from "./context.ts";
import { lastIdOf, toPage } from "./newest-first.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { checkSecret, ROTATION_OVERLAP_SECONDS, rotateSecret } from "./secret.ts";

const LIST = { list: "signing_keys", scope: "", prefix: "sigk" } as const;
const ALGORITHMS = { v1: SigningAlgorithm.V1, v1a: SigningAlgorithm.V1A } as const;

/** The calls on the keys of a project. */
export function signingService(app: AppContext): ServiceImpl<typeof SigningService> {
  return {
    rotateSecret(req, ctx) {
      checkSecret(req.secret);
      return once(app, ctx, RotateSecretResponseSchema, req, "", async (trx) => {
        const owner = projectAsOwner(projectOf(ctx));
        const secret = req.secret || newSecret();
        const overlapSeconds = req.overlapSeconds ?? ROTATION_OVERLAP_SECONDS;
        const { row, previousValidUntil } = await rotateSecret(app.vault, trx, owner, secret, overlapSeconds);
        return {
          keyId: formatId("sigk", row.key_id),
          ...(req.secret === "" && { secret }),
          ...(previousValidUntil !== undefined && { previousValidUntil: timestampFromDate(previousValidUntil) }),
        };
      });
    },

    rotateKey: (req, ctx) =>
      once(app, ctx, RotateKeyResponseSchema, req, "", async (trx) => {
        const owner = projectAsOwner(projectOf(ctx));
        const { privateKey, publicKey } = newKeyPair();
        const sealed = app.vault.seal(privateKey, keyPlace(owner, "v1a"));
        const key = { algorithm: "v1a", sealed, publicKey } as const;
        const { row } = await replaceSigningKey(trx, owner, key, req.overlapSeconds ?? ROTATION_OVERLAP_SECONDS);
        return { key: toSigningKey(row) };
      }),

    async listSigningKeys(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const rows = await listSigningKeys(app.db, projectOf(ctx), lastIdOf(LIST, req.cursor), limit + 1);
      return {
        ...toPage(LIST, rows, limit, (row) => row.key_id, toSigningKey),
        jwksPath: `/v1/scheduling/jwks/get/${formatId("prj", projectOf(ctx))}`,
      };
    },

    endSigningKey: (req, ctx) =>
      once(app, ctx, EndSigningKeyResponseSchema, req, req.keyId, async (trx) => {
        const keyId = parseId("sigk", req.keyId);
        const outcome = keyId === undefined ? "missing" : await endSigningKey(trx, projectOf(ctx), keyId);
        if (outcome === "missing") throw new Refusal("SIGNING_KEY_NOT_FOUND", { key_id: req.keyId });
        if (outcome === "current") throw new Refusal("SIGNING_SECRET_CURRENT", { key_id: req.keyId });
        return { keyId: req.keyId, ended: true };
      }),
  };
}

function projectAsOwner(projectId: string) {
  return { projectId, ownerId: projectId };
}

function toSigningKey(row: SigningKeyRow): MessageInitShape<typeof SigningKeySchema> {
  return {
    keyId: formatId("sigk", row.key_id),
    algorithm: ALGORITHMS[row.algorithm],
    ...(row.public_key !== null && { publicKey: formatPublicKey(row.public_key) }),
    createdAt: timestampFromDate(row.created_at),
    ...(row.valid_until !== null && { validUntil: timestampFromDate(row.valid_until) }),
  };
}
