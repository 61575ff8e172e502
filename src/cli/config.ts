import { SETTINGS, type Setting } from "../settings.ts";
import { formatTable } from "./table.ts";

/** `carillon config`: every setting, as a table for a terminal or as the page docs/config.md. */
export async function showConfig({ markdown }: { markdown?: true }): Promise<number> {
  const settings: readonly Setting<unknown>[] = Object.values(SETTINGS);
  process.stdout.write(markdown ? asMarkdown(settings) : asText(settings));
  return 0;
}

function asText(settings: readonly Setting<unknown>[]): string {
  const rows = settings.map((entry) => [entry.env, defaultOf(entry), entry.rule]);
  return `${formatTable(["VARIABLE", "DEFAULT", "MUST BE"], rows)}\n`;
}

function asMarkdown(settings: readonly Setting<unknown>[]): string {
  const rows = settings.map((entry) => {
    const alias = entry.alias === undefined ? "" : ` \`${entry.alias}\` counts where it is not set.`;
    const fallback = entry.fallback ? `\`${entry.fallback}\`` : defaultOf(entry);
    return `| \`${entry.env}\` | ${fallback} | ${entry.rule} | ${entry.about}${alias} |`;
  });
  return [
    "# Settings",
    "",
    "Carillon reads its settings from the environment, once, at the start. It reports all that cannot be used together",
    "and then does not start. A variable that is empty counts as not set; an unknown one that begins with `CARILLON_` is",
    "warned about. On or off is also written `true` or `false`, `yes` or `no`, `1` or `0`.",
    "",
    "This page is printed by `carillon config --markdown` from the table in `src/settings.ts`.",
    "",
    "| Variable | Default | Must be | What it does |",
    "|---|---|---|---|",
    ...rows,
    "",
    "`carillon listen` also reads `CARILLON_WEBHOOK_SECRET`, the secret to verify with where `--secret` is not given. The",
    "commands that call a server read `CARILLON_URL`, where it is (default `http://127.0.0.1:7070`), and `CARILLON_API_KEY`.",
    "",
  ].join("\n");
}

function defaultOf(entry: Setting<unknown>): string {
  if (entry.fallback === undefined) return entry.unsetMeans ?? "none";
  return entry.fallback === "" ? "none" : entry.fallback;
}
