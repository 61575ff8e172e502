/** A line through points, as an SVG text. */
export interface Plot {
  readonly title: string;
  /** What grows, and in what unit. */
  readonly across: string;
  /** What it does to, and in what unit. */
  readonly up: string;
  readonly points: readonly Point[];
}

export interface Point {
  readonly x: number;
  /** The least, the middle and the greatest of the rounds. */
  readonly least: number;
  readonly middle: number;
  readonly greatest: number;
}

const WIDTH = 480;
const HEIGHT = 280;
const LEFT = 68;
const RIGHT = 16;
const TOP = 34;
const BOTTOM = 46;

/**
 * Draws the middles as a line and the spread as bars. Across, the values stand at equal distances, since they grow by
 * factors; up, the axis begins at zero, so that what looks flat is flat.
 */
export function drawPlot({ title, across, up, points }: Plot): string {
  const highest = niceCeiling(Math.max(...points.map(({ greatest }) => greatest)));
  const x = (index: number): number => {
    const step = (WIDTH - LEFT - RIGHT) / Math.max(1, points.length);
    return round(LEFT + step * (index + 0.5));
  };
  const y = (value: number): number => round(TOP + (1 - value / highest) * (HEIGHT - TOP - BOTTOM));
  const grid = [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const at = y(highest * part);
    return (
      `<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${at}" y2="${at}" class="grid"/>` +
      `<text x="${LEFT - 6}" y="${at + 4}" text-anchor="end">${short(highest * part)}</text>`
    );
  });
  const marks = points.map(({ x: value, least, middle, greatest }, index) => {
    const at = x(index);
    return (
      `<line x1="${at}" x2="${at}" y1="${y(least)}" y2="${y(greatest)}" class="spread"/>` +
      `<circle cx="${at}" cy="${y(middle)}" r="3"/>` +
      `<text x="${at}" y="${HEIGHT - BOTTOM + 18}" text-anchor="middle">${short(value)}</text>`
    );
  });
  const line = points.map(({ middle }, index) => `${x(index)},${y(middle)}`).join(" ");
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${title}">`,
    "<style>svg{background:#fff;font:12px sans-serif}text{fill:#333}.grid{stroke:#ddd}.spread{stroke:#9ab;stroke-width:5}",
    "polyline{fill:none;stroke:#246;stroke-width:2}circle{fill:#246}.title{font-weight:bold}</style>",
    `<text x="${LEFT}" y="18" class="title">${title}</text>`,
    ...grid,
    `<polyline points="${line}"/>`,
    ...marks,
    `<text x="${(LEFT + WIDTH - RIGHT) / 2}" y="${HEIGHT - 8}" text-anchor="middle">${across}</text>`,
    `<text transform="translate(14 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">${up}</text>`,
    "</svg>\n",
  ].join("\n");
}

/** The next of 1, 2, 4 and 8 times a power of ten, so that a quarter of it is a short number. */
function niceCeiling(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return (([1, 2, 4, 8, 10] as const).find((times) => times * power >= value) ?? 10) * power;
}

function short(value: number): string {
  if (value >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (value >= 1e3) return `${Number((value / 1e3).toPrecision(3))}k`;
  return `${Number(value.toPrecision(3))}`;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
