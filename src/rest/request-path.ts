import { Refusal } from "../errors.ts";

/** One segment of a request path. */
export interface PathSegment {
  /** As it was sent. */
  readonly raw: string;
  /** Percent-decoded. A decoded slash is part of the text and separates nothing. */
  readonly text: string;
}

/** A request target, taken apart. */
export interface RequestTarget {
  /** The path as it was sent. */
  readonly pathname: string;
  readonly query: URLSearchParams;
}

/** Takes a request target apart: `/path?query`, or the absolute form `http://host/path?query`. */
export function parseTarget(target: string): RequestTarget {
  const relative = target.replace(/^[A-Za-z][A-Za-z0-9+.-]*:\/\/[^/?#]*/, "");
  const mark = relative.indexOf("?");
  const pathname = mark === -1 ? relative : relative.slice(0, mark);
  return { pathname, query: new URLSearchParams(mark === -1 ? "" : relative.slice(mark + 1)) };
}

/**
 * Splits a path at its slashes and decodes each segment. `.` and `..` are segments like any others: nothing here is a
 * file, and the rules of the fields refuse them where they are no names.
 *
 * @throws Refusal PATH_INVALID for a broken or non-UTF-8 percent escape, or an encoded NUL.
 */
export function decodePath(pathname: string): PathSegment[] {
  return pathname
    .replace(/^\//, "")
    .split("/")
    .map((raw) => ({ raw, text: decodeSegment(raw) }));
}

/** The text of several segments, for a variable that captures more than one: an encoded slash stays encoded. */
export function unescapeSegments(segments: readonly PathSegment[]): string {
  return segments.map(({ text }) => text.replaceAll("/", "%2F")).join("/");
}

function decodeSegment(raw: string): string {
  if (!raw.includes("%")) return raw;
  let text: string;
  try {
    text = decodeURIComponent(raw);
  } catch {
    throw new Refusal("PATH_INVALID", { detail: "a percent escape is not UTF-8" });
  }
  if (text.includes("\0")) throw new Refusal("PATH_INVALID", { detail: "it holds an encoded NUL" });
  return text;
}
