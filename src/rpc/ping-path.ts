import type { CronJobRow } from "../db/schema.ts";
import { hashPingToken, newPingToken } from "../domain/ping.ts";
import { pingTokenPlace } from "../domain/signing-key.ts";
import type { Vault } from "../vault/vault.ts";

/** Where monitors are pinged, as the contract says. */
const PING_PATH = "/v1/scheduling/ping/";

type Monitor = Pick<CronJobRow, "project_id" | "cron_id">;

/** A new token for a monitor: as it is stored with the job, and what it is found by. */
export function sealedPingToken(vault: Vault, job: Monitor): { readonly sealed: string; readonly tokenHash: Buffer } {
  const token = newPingToken();
  return { sealed: vault.seal(token, placeOf(job)), tokenHash: hashPingToken(token) };
}

/** The path that a monitor with that stored token is pinged at. */
export function pingPathOf(vault: Vault, job: Monitor, sealed: string): string {
  return PING_PATH + vault.openText(sealed, placeOf(job));
}

function placeOf({ project_id: projectId, cron_id: ownerId }: Monitor) {
  return pingTokenPlace({ projectId, ownerId });
}
