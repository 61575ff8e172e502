/**
 * A process that owns an embedded server: starts one with the options in its first argument (JSON), prints the server's
 * facts as a line of JSON, and stays until it is killed or its input ends. A refusal is printed as `{"error": …}`.
 */
import { startEmbeddedPostgres } from "../../src/db/embedded.ts";

try {
  await using server = await startEmbeddedPostgres(JSON.parse(process.argv[2] ?? "{}"));
  console.log(JSON.stringify({ url: server.url, dataDir: server.dataDir }));
  for await (const _ of process.stdin) {
    // Only the end counts.
  }
} catch (error) {
  console.log(JSON.stringify({ error: error instanceof Error ? `${error.name}: ${error.message}` : String(error) }));
}
