import { type DescEnum, ScalarType } from "@bufbuild/protobuf";

/** Why a value is not one of its field. `rule` ends a sentence that starts with the field's name. */
export class Wrong {
  readonly rule: string;

  constructor(rule: string) {
    this.rule = rule;
  }
}

const INTEGER_RANGES: ReadonlyMap<ScalarType, readonly [number, number]> = new Map([
  [ScalarType.INT32, [-(2 ** 31), 2 ** 31 - 1]],
  [ScalarType.SINT32, [-(2 ** 31), 2 ** 31 - 1]],
  [ScalarType.SFIXED32, [-(2 ** 31), 2 ** 31 - 1]],
  [ScalarType.UINT32, [0, 2 ** 32 - 1]],
  [ScalarType.FIXED32, [0, 2 ** 32 - 1]],
]);

const NUMBER = /^(-?)(0|[1-9]\d*)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/;
const FLOAT_MAX = 3.402_823_466_385_288_6e38;

/**
 * Reads a number as JSON writes it, judging the text and not its nearest double: `5.0` and `1e2` are whole, `1e-400`
 * is not, `1e400` is out of range.
 */
export function numberFromText(scalar: ScalarType, text: string): number | Wrong {
  const match = NUMBER.exec(text);
  if (match === null) return new Wrong("must be a number");
  const value = Number(text);
  const range = INTEGER_RANGES.get(scalar);
  if (range === undefined) {
    const max = scalar === ScalarType.FLOAT ? FLOAT_MAX : Number.MAX_VALUE;
    return Math.abs(value) <= max ? value : new Wrong("must be a number that fits");
  }
  const [, , whole = "", fraction = "", exponent = "0"] = match;
  const digits = (whole + fraction).replace(/0+$/, "");
  const trailingZeros = whole.length + fraction.length - digits.length;
  // The last digit that is not 0 must not stand behind the decimal point.
  if (digits !== "" && Number(exponent) - fraction.length + trailingZeros < 0)
    return new Wrong("must be a whole number");
  const [min, max] = range;
  if (value < min || value > max) return new Wrong(`must be from ${min} to ${max}`);
  // Adding 0 turns -0 into 0.
  return value + 0;
}

/** Reads `true` or `false`. */
export function booleanFromText(text: string): boolean | Wrong {
  if (text === "true") return true;
  if (text === "false") return false;
  return new Wrong("must be true or false");
}

/** Reads base64 of either alphabet, with or without padding. */
export function bytesFromBase64(text: string): Uint8Array | Wrong {
  const bare = text.replace(/={1,2}$/, "");
  if (bare.length % 4 === 1 || !/^[A-Za-z0-9+/_-]*$/.test(bare)) return new Wrong("must be a base64 string");
  return new Uint8Array(Buffer.from(bare, "base64"));
}

/** A string that Unicode can write: no half of a surrogate pair alone. */
export function stringFrom(text: string): string | Wrong {
  return text.isWellFormed() ? text : new Wrong("must not hold half of a surrogate pair");
}

/** How an enum value is called over REST: in lower case, without what all names of the enum start with. */
export function enumName(desc: DescEnum, number: number): string | undefined {
  const value = desc.value[number];
  if (value === undefined) return undefined;
  const name = value.name.toLowerCase();
  const prefix = desc.sharedPrefix ?? "";
  return name.startsWith(prefix) ? name.slice(prefix.length) : name;
}

/** Reads an enum value: its short or full name in any case, or the number of a value that exists. */
export function enumFromText(desc: DescEnum, text: string): number | Wrong {
  const wanted = text.toLowerCase();
  for (const value of desc.values) {
    const isIt = wanted === value.name.toLowerCase() || wanted === enumName(desc, value.number);
    if (isIt || wanted === String(value.number)) return value.number;
  }
  const names = desc.values.filter((value) => value.number !== 0).map((value) => enumName(desc, value.number));
  return new Wrong(`must be one of ${names.join(", ")}`);
}
