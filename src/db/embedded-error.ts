/** Why the embedded PostgreSQL cannot be used here. The message is for the operator: the reason and what to do. */
export class EmbeddedPostgresError extends Error {
  override readonly name = "EmbeddedPostgresError";
}

/** The code of a failed system call (`ENOENT`), or undefined when `error` is something else. */
export function systemErrorCode(error: unknown): string | undefined {
  return error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : undefined;
}
