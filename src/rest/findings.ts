import { type FieldViolation, Refusal } from "../errors.ts";
import type { Wrong } from "./scalar.ts";

/** Most violations in one refusal; more of them help nobody. */
const MAX_VIOLATIONS = 50;
/** Most names in one warning, and most warnings of one kind. */
const MAX_NAMES = 10;
/** Longest name in a warning, in characters. */
const MAX_NAME_LENGTH = 64;
/** Longest field of a violation, in characters: keys of maps can be of any length. */
const MAX_FIELD_LENGTH = 256;

/** What a project refuses instead of warning about it. */
export interface Strictness {
  /** An identifier in the body or the query that differs from the path. */
  readonly pathBody: boolean;
  readonly unknownFields: boolean;
}

/** Collects what is wrong and what is odd about one request while it is decoded. */
export class Findings {
  readonly #violations: FieldViolation[] = [];
  /** The first few of them. */
  readonly #unknown: string[] = [];
  #unknownCount = 0;
  readonly #overruled: { readonly at: string; readonly field: string }[] = [];

  /** Notes the rule that a field broke. */
  wrong(at: string, { rule }: Wrong): void {
    if (this.#violations.length < MAX_VIOLATIONS) {
      this.#violations.push({ field: at.slice(0, MAX_FIELD_LENGTH), description: rule });
    }
  }

  /** Notes a name that no field has. */
  unknown(at: string): void {
    this.#unknownCount += 1;
    if (this.#unknown.length < MAX_NAMES) this.#unknown.push(printable(at));
  }

  /** Notes an identifier that the path overrules. `at` starts with `body.` or `query.`. */
  overruled(at: string, field: string): void {
    if (this.#overruled.length < MAX_NAMES) this.#overruled.push({ at: printable(at), field });
  }

  /**
   * Ends the decoding of a request: gives the warnings.
   *
   * @throws Refusal FIELD_INVALID with every violation, or what a strict project refuses.
   */
  settle(strict: Strictness): string[] {
    const [first, ...others] = this.#violations;
    if (first !== undefined) {
      const more = others.length === 0 ? "" : ` (and ${others.length} more)`;
      const summary = `${first.field}: ${first.description}${more}`;
      throw new Refusal("FIELD_INVALID", { summary }, { violations: this.#violations });
    }
    const [overruled] = this.#overruled;
    if (overruled !== undefined && strict.pathBody) throw new Refusal("PATH_BODY_MISMATCH", { field: overruled.at });
    const [unknown] = this.#unknown;
    if (unknown !== undefined && strict.unknownFields) {
      throw new Refusal("UNKNOWN_FIELD", { field: unknown });
    }
    const warnings = this.#overruled.map(({ at, field }) => `${at} ignored, path names the ${field}`);
    if (this.#unknownCount > 0) {
      const more = this.#unknownCount > MAX_NAMES ? ` and ${this.#unknownCount - MAX_NAMES} more` : "";
      const noun = this.#unknownCount === 1 ? "field" : "fields";
      warnings.push(`unknown ${noun} ${this.#unknown.join(", ")}${more} ignored`);
    }
    return warnings;
  }
}

/** A caller's text made fit for a header: printable ASCII, not long. */
export function printable(text: string): string {
  const ascii = text.replace(/[^\x20-\x7e]/g, "?");
  return ascii.length > MAX_NAME_LENGTH ? `${ascii.slice(0, MAX_NAME_LENGTH)}...` : ascii;
}
