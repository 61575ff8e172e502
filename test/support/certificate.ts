import { createPublicKey, generateKeyPairSync, sign } from "node:crypto";
import { isIP } from "node:net";

/** A self-signed certificate and its key, PEM. */
export interface Certificate {
  readonly cert: string;
  readonly key: string;
}

/**
 * Makes a self-signed certificate for the names and addresses, so that no key lies in the repository.
 * Valid from a day ago until `validMs` from now (default a day; negative for one that has expired).
 */
export function selfSigned(names: readonly string[], validMs = 86_400_000): Certificate {
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const algorithm = sequence(oid("2a8648ce3d040302")); // ecdsa-with-SHA256
  const name = sequence(tlv(0x31, sequence(oid("550403"), tlv(0x0c, Buffer.from("carillon test")))));
  const time = (ms: number): Buffer =>
    tlv(0x18, Buffer.from(`${new Date(ms).toISOString().replace(/[-:T]|\..*/g, "")}Z`));
  const altNames = names.map((text) =>
    isIP(text) === 4 ? tlv(0x87, Buffer.from(text.split(".").map(Number))) : tlv(0x82, Buffer.from(text)),
  );
  const body = sequence(
    tlv(0xa0, tlv(0x02, Buffer.from([2]))),
    tlv(0x02, Buffer.from([1])),
    algorithm,
    name,
    sequence(time(Date.now() - 2 * 86_400_000), time(Date.now() + validMs)),
    name,
    createPublicKey(privateKey).export({ type: "spki", format: "der" }),
    tlv(0xa3, sequence(sequence(oid("551d11"), tlv(0x04, sequence(...altNames))))),
  );
  const signature = tlv(0x03, Buffer.concat([Buffer.from([0]), sign("sha256", body, privateKey)]));
  const der = sequence(body, algorithm, signature).toString("base64");
  return {
    cert: `-----BEGIN CERTIFICATE-----\n${der.match(/.{1,64}/g)?.join("\n")}\n-----END CERTIFICATE-----\n`,
    key: privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
  };
}

function tlv(tag: number, content: Buffer): Buffer {
  const length =
    content.length < 0x80
      ? [content.length]
      : content.length < 0x100
        ? [0x81, content.length]
        : [0x82, content.length >> 8, content.length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...length]), content]);
}

function sequence(...parts: readonly Buffer[]): Buffer {
  return tlv(0x30, Buffer.concat(parts));
}

function oid(hex: string): Buffer {
  return tlv(0x06, Buffer.from(hex, "hex"));
}
