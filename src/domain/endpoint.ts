import { createHash } from "node:crypto";

/** One receiver of a project: what its limits, its health and its share of the hand-out belong to. */
export interface EndpointKey {
  /** Stored id: a digest of the address, so that whoever has a URL knows the endpoint without a look-up. */
  readonly endpointId: string;
  /** Origin and path of the URL, without query and fragment. */
  readonly address: string;
}

/** The endpoint that a normalised URL belongs to; the SQL function `carillon_endpoint_id` gives the same id. */
export function endpointOf(url: string): EndpointKey {
  const end = url.search(/[?#]/);
  const address = end < 0 ? url : url.slice(0, end);
  const hex = createHash("sha256").update(address).digest("hex");
  return {
    address,
    endpointId: `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20, 32)}`,
  };
}
