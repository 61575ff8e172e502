import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { headerPlace, keyPlace, type Place } from "../../src/domain/signing-key.ts";
import { parseVault, readOrMakeVault, readVault } from "../../src/vault/keys.ts";
import { UnsealError } from "../../src/vault/vault.ts";

const OLD = Buffer.alloc(32, "old").toString("base64");
const NEW = Buffer.alloc(32, "new").toString("base64");
const PLACE: Place = ["project", "table", "row", "column"];

describe("a sealed value", () => {
  const vault = parseVault(NEW);

  test.each(["", "whsec_c2VjcmV0", "日本", "\0"])("gives %j back in its place", (text) => {
    expect(vault.openText(vault.seal(text, PLACE), PLACE)).toBe(text);
  });

  test("gives bytes back as they were", () => {
    const bytes = Buffer.from([0, 255, 128, 10]);
    expect(vault.open(vault.seal(bytes, PLACE), PLACE)).toEqual(bytes);
  });

  test("shows nothing of the text, names its key, and is another each time", () => {
    const sealed = new Set(Array.from({ length: 100 }, () => vault.seal("a secret of mine", PLACE)));
    expect(sealed.size).toBe(100);
    for (const value of sealed) {
      expect(value).toMatch(/^sealed1\.[0-9a-f]{8}\.[\w-]+$/);
      expect(value.startsWith(`${vault.currentSeal}.`)).toBe(true);
      expect(Buffer.from(value.split(".")[2] ?? "", "base64url").toString("latin1")).not.toContain("secret");
    }
  });

  test("cannot be opened in another place, whichever part of it differs", () => {
    const sealed = vault.seal("text", PLACE);
    const others: Place[] = [
      ["other", "table", "row", "column"],
      ["project", "other", "row", "column"],
      ["project", "table", "other", "column"],
      ["project", "table", "row", "other"],
      ["project", "table", "row"],
      ["project", "table", "row", "column", ""],
      ["project", "table", 'row","column'],
    ];
    for (const place of others) expect(() => vault.open(sealed, place), place.join()).toThrow(UnsealError);
  });

  test("cannot be opened when a bit of it has changed, or when it is cut", () => {
    const sealed = vault.seal("text", PLACE);
    const [version, id, encoded = ""] = sealed.split(".");
    const bytes = Buffer.from(encoded, "base64url");
    for (let at = 0; at < bytes.length; at++) {
      const changed = Buffer.from(bytes);
      changed[at] = (changed[at] ?? 0) ^ 1;
      expect(() => vault.open(`${version}.${id}.${changed.toString("base64url")}`, PLACE)).toThrow(UnsealError);
    }
    for (const text of ["", "text", "plain.text", `${version}.${id}.`, `${version}.${id}.AAAA`, `${sealed}.x`]) {
      expect(() => vault.open(text, PLACE), text).toThrow(UnsealError);
    }
  });
});

test("the places of keys and headers of different owners are different", () => {
  const owner = { projectId: "p", ownerId: "o" };
  const places = [
    keyPlace(owner, "v1"),
    keyPlace(owner, "v1a"),
    keyPlace({ ...owner, ownerId: "x" }, "v1"),
    keyPlace({ ...owner, projectId: "x" }, "v1"),
    headerPlace(owner, "v1"),
    headerPlace(owner, "authorization"),
  ];
  expect(new Set(places.map((place) => JSON.stringify(place))).size).toBe(places.length);
});

describe("a vault with two keys", () => {
  const before = parseVault(OLD);
  const during = parseVault(`${NEW},\n ${OLD}\n`);
  const after = parseVault(NEW);

  test("seals by the first and opens what either has sealed", () => {
    expect(during.openText(before.seal("text", PLACE), PLACE)).toBe("text");
    const sealed = during.seal("text", PLACE);
    expect(after.openText(sealed, PLACE)).toBe("text");
    expect(() => before.open(sealed, PLACE)).toThrow(/sealed by the key [0-9a-f]{8}, which is not here/);
  });

  test("seals again what the old one sealed, and leaves alone what the first did", () => {
    const resealed = during.reseal(before.seal("text", PLACE), PLACE);
    expect(after.openText(resealed, PLACE)).toBe("text");
    expect(during.reseal(resealed, PLACE)).toBe(resealed);
  });
});

describe("keys", () => {
  test.each(["", " , ", "secret", `${OLD},x`, OLD.slice(0, -1), Buffer.alloc(31).toString("base64")])(
    "are refused as %j, in words that do not repeat it",
    (text) => {
      expect(() => parseVault(text)).toThrow(RangeError);
      expect(() => parseVault(text)).not.toThrow(/secret|b2xk/);
    },
  );

  test("of a file are made once, for this user only, however many ask at once", async () => {
    const directory = await mkdtemp(join(tmpdir(), "carillon-vault-"));
    onTestFinished(() => rm(directory, { recursive: true }));
    const file = join(directory, "below", "key");
    const vaults = await Promise.all(Array.from({ length: 20 }, () => readOrMakeVault(file)));
    expect(new Set(vaults.map((vault) => vault.currentSeal)).size).toBe(1);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    expect((await readVault(file)).currentSeal).toBe(vaults[0]?.currentSeal);
    expect(parseVault(await readFile(file, "utf8")).currentSeal).toBe(vaults[0]?.currentSeal);
  });

  test("of a file that holds something else are refused with the file's name, and the file is left alone", async () => {
    const directory = await mkdtemp(join(tmpdir(), "carillon-vault-"));
    onTestFinished(() => rm(directory, { recursive: true }));
    const file = join(directory, "key");
    await writeFile(file, "hunter2");
    await expect(readOrMakeVault(file)).rejects.toThrow(`${file}: key 1 is not 32 bytes in base64`);
    expect(await readFile(file, "utf8")).toBe("hunter2");
  });
});
