import { expect, test } from "vitest";
import { LruCache } from "../../src/domain/lru-cache.ts";

test("a full cache forgets the least recently used entry and keeps the others", () => {
  const cache = new LruCache<string>(2);
  const built: string[] = [];
  const get = (key: string) =>
    cache.getOrBuild(key, () => {
      built.push(key);
      return key;
    });
  for (const key of ["a", "b", "a", "c", "a", "b"]) expect(get(key)).toBe(key);
  expect(built).toEqual(["a", "b", "c", "b"]);
});

test("what fails to build is not kept", () => {
  const cache = new LruCache<string>(2);
  expect(() =>
    cache.getOrBuild("a", () => {
      throw new Error("no");
    }),
  ).toThrow("no");
  expect(cache.getOrBuild("a", () => "built")).toBe("built");
});
