/* How much each layer minds being pruned by itself: a bar per layer and chosen point, on one scale. */

function layersBlock(view, points) {
  const measured = points.filter((point) => point.sensitivity);
  if (!measured.length) return "";
  const { layers } = view.section;
  const values = measured.flatMap(({ sensitivity }) => sensitivity.figures.flatMap((one) => one ?? []));
  const low = Math.min(0, ...values),
    span = Math.max(0, ...values) - low || 1,
    unit = unitOf(span);
  const bodies = new Map(); // block -> its rows
  layers.forEach((layer, index) => {
    const figures = measured.map(({ sensitivity }) => sensitivity.figures[index]);
    if (!figures.some(Boolean)) return;
    const [block, name] = parted(layer);
    const cells = measured.map((point, place) => layerCell(view, point, figures[place], { low, span, unit }));
    if (!bodies.has(block)) bodies.set(block, []);
    bodies.get(block).push(node("tr", {}, node("th", { scope: "row", title: layer }, ...breakable(name)), ...cells));
  });
  const head = measured.map((point) =>
    node("th", { scope: "col", title: point.label }, node("span", { class: "letter" }, letterOf(view, point)), ` ${unit.name}`),
  );
  const table = node(
    "table",
    {},
    node("thead", {}, node("tr", {}, node("th", { scope: "col" }, "layer"), ...head)),
    ...[...bodies].map(([block, rows]) =>
      node(
        "tbody",
        {},
        node("tr", {}, node("th", { class: "block", scope: "rowgroup", colspan: measured.length + 1 }, block)),
        ...rows,
      ),
    ),
  );
  const without = points.filter((point) => !point.sensitivity).map((point) => letterOf(view, point));
  const ways = [...new Set(measured.map(({ sensitivity }) => sensitivity.how))];
  const how = ways.map((way) => {
    const letters = measured.filter(({ sensitivity }) => sensitivity.how === way);
    const whose = ways.length > 1 ? `${letters.map((point) => letterOf(view, point)).join(", ")}: ` : "";
    return node("p", { class: "quiet" }, whose + way);
  });
  const region = node(
    "div",
    { class: "scroll layers", tabindex: 0, role: "region", "aria-label": "Sensitivity by layer", "data-focus": "layers" },
    table,
  );
  table.style.minWidth = `${168 + 140 * measured.length}px`;
  region.style.maxWidth = `${254 + 440 * measured.length}px`;
  return node(
    "div",
    { class: "sensitivity" },
    node("h4", {}, "Sensitivity: what pruning one layer alone would cost"),
    ...how,
    without.length ? node("p", { class: "quiet" }, `Not measured: ${without.join(", ")}.`) : "",
    region,
  );
}

/* The power of a thousand in which the largest value is read without zeros before it. */
function unitOf(largest) {
  const power = Math.min(0, 3 * Math.floor(Math.log10(largest) / 3));
  const digits = [...String(-power)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("");
  return { name: power ? `10⁻${digits} nats` : "nats", size: 10 ** power };
}

/* A dotted name that may break behind its dots. */
function breakable(name) {
  return name.split(/(?<=\.)/).flatMap((part) => [part, node("wbr")]);
}

/* "encoder.block.0.layer.1.wo" -> its block and its place there. */
function parted(layer) {
  const [, block, name] = layer.match(/^(.*?\.\d+)\.(.+)$/) ?? [null, "", layer];
  return [block, name];
}

function layerCell(view, point, figure, { low, span, unit }) {
  if (!figure) return node("td", {}, "–");
  const [mean, from, to] = figure,
    share = (size) => `${((100 * size) / span).toFixed(2)}%`,
    text = (size) => short(size / unit.size);
  const bar = node("rect", {
    class: `bar fill-${view.state.chosen.indexOf(point.id)}`,
    x: share(Math.min(0, mean) - low),
    width: share(Math.abs(mean)),
    height: "100%",
  });
  return node(
    "td",
    {},
    node(
      "div",
      { class: "barred" },
      node("svg", { height: 11, "aria-hidden": "true" }, bar),
      node("span", {}, text(mean), from === undefined ? null : node("small", {}, `${text(from)} to ${text(to)}`)),
    ),
  );
}
