const REFERENCE = /\$(\$)?\{([A-Za-z_][A-Za-z0-9_]*)\}/g;

/** A text of the file that names variables of the environment, as `${NAME}`. `$${NAME}` stands for `${NAME}` itself. */
export class EnvironmentText {
  readonly template: string;

  constructor(template: string) {
    this.template = template;
  }

  /** The names of the variables, each once. */
  get names(): readonly string[] {
    const names = [...this.template.matchAll(REFERENCE)].flatMap(([, escaped, name]) => (escaped ? [] : [name ?? ""]));
    return [...new Set(names)];
  }

  /** The text with the variables' values; those that are not set are left as they are. */
  resolve(variable: (name: string) => string | undefined): string {
    return this.template.replace(REFERENCE, (whole, escaped: string | undefined, name: string) =>
      escaped ? whole.slice(1) : (variable(name) ?? whole),
    );
  }

  /** A plain text as the file writes it. */
  static escape(text: string): string {
    return text.replace(/\$\{/g, "$$${");
  }
}
