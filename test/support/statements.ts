import type { KyselyPlugin } from "kysely";
import type { Db } from "../../src/db/schema.ts";

/** The database, which tells `onStatement` of each statement before it is sent: its tree, as text. */
export function watching(db: Db, onStatement: (statement: string) => void): Db {
  const plugin: KyselyPlugin = {
    transformQuery({ node }) {
      onStatement(JSON.stringify(node, (_, value) => (typeof value === "bigint" ? `${value}` : value)));
      return node;
    },
    transformResult: async ({ result }) => result,
  };
  return db.withPlugin(plugin);
}
