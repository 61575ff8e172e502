import type { MessageInitShape } from "@bufbuild/protobuf";
import type { RunSchema } from "../../gen/scheduling/v1/run_pb.js";
import type { Db } from "../db/schema.ts";
import { listRuns, type RunFilter } from "../store/runs.ts";
import { toRun } from "./convert-run.ts";
import { lastIdOf, toPage } from "./newest-first.ts";
import { PAGE_LIMIT } from "./page.ts";

/** What a caller asks of a page. */
interface PageRequest {
  readonly cursor: string;
  readonly limit?: number | undefined;
}

/**
 * A page of the project's runs, in the list of that name; an empty one where the filter is undefined, since it can show
 * nothing.
 *
 * @throws Refusal FIELD_INVALID
 */
export async function runsPage(
  db: Db,
  projectId: string,
  name: string,
  filter: RunFilter | undefined,
  { cursor, limit = PAGE_LIMIT }: PageRequest,
): Promise<{ items: MessageInitShape<typeof RunSchema>[]; nextCursor?: string }> {
  const list = { list: name, scope: JSON.stringify(filter ?? ""), prefix: "run" } as const;
  const before = lastIdOf(list, cursor);
  if (filter === undefined) return { items: [] };
  const runs = await listRuns(db, projectId, filter, before, limit + 1);
  return toPage(
    list,
    runs,
    limit,
    (run) => run.run_id,
    (run) => toRun(run),
  );
}
