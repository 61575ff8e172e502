/** The headers of W3C Trace Context, by their names in lower case. */
export interface TraceContext {
  readonly traceparent: string;
  readonly tracestate?: string;
}

const TRACEPARENT = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?$/;
const MAX_MEMBERS = 32;
/** A member of tracestate: a key of one vendor or of a tenant at one, and a value. */
const MEMBER =
  /^([a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]$/;

/**
 * The trace context that two headers carry, as the W3C recommendation reads them: undefined where traceparent is not
 * valid, and without tracestate where that is not.
 */
export function traceContext(traceparent: string, tracestate: string): TraceContext | undefined {
  const parent = traceparent.trim();
  if (!isTraceparent(parent)) return undefined;
  const state = tracestate.trim();
  return state !== "" && isTracestate(state) ? { traceparent: parent, tracestate: state } : { traceparent: parent };
}

function isTraceparent(value: string): boolean {
  const [, version, traceId, parentId, more] = TRACEPARENT.exec(value) ?? [];
  if (version === undefined || version === "ff" || (version === "00" && more !== undefined)) return false;
  return traceId !== "0".repeat(32) && parentId !== "0".repeat(16);
}

function isTracestate(value: string): boolean {
  const members = value
    .split(",")
    .map((member) => member.replace(/^[ \t]+|[ \t]+$/g, ""))
    .filter((member) => member !== "");
  const keys = new Set(members.map((member) => member.slice(0, member.indexOf("="))));
  return (
    members.length <= MAX_MEMBERS && keys.size === members.length && members.every((member) => MEMBER.test(member))
  );
}
