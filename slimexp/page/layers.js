/* Single layers of the chosen points: a bar per layer and point, on one scale. */

/* How much each layer minds being pruned by itself. */
function layersBlock(view, points) {
  const measured = points.filter((point) => point.sensitivity);
  if (!measured.length) return "";
  const values = measured.flatMap(({ sensitivity }) => sensitivity.figures.flatMap((one) => one ?? []));
  const low = Math.min(0, ...values),
    span = Math.max(0, ...values) - low || 1,
    unit = unitOf(span);
  const cell = (point, index) => {
    const figure = point.sensitivity.figures[index];
    return figure && barred(figure, { low, span, unit, bar: `fill-${view.state.chosen.indexOf(point.id)}` });
  };
  return node(
    "div",
    { class: "sensitivity" },
    node("h4", {}, "Sensitivity: what pruning one layer alone would cost"),
    ...howBlock(view, points, measured, ({ sensitivity }) => sensitivity.how, "Not measured"),
    layersTable(view, measured, { label: "Sensitivity by layer", unit: unit.name, cell }),
  );
}

/* How many bits each layer's weights got, above what rounding it alone would cost at a width of the reader's choice. */
function bitsBlock(view, points) {
  const measured = points.filter((point) => point.bits);
  if (!measured.length) return "";
  const widths = [...new Set(measured.flatMap(({ bits }) => Object.keys(bits.growth)))].sort((a, b) => a - b);
  const width = widths.includes(view.state.width) ? view.state.width : widths[0];
  const grown = (point, index) => point.bits.growth[width]?.[index];
  const values = measured.flatMap(({ bits }) => (bits.growth[width] ?? []).flatMap((one) => one ?? []));
  const low = Math.min(0, ...values),
    span = Math.max(0, ...values) - low || 1,
    unit = unitOf(span);
  const cell = (point, index) => {
    const figure = point.bits.figures[index],
      cost = grown(point, index),
      bar = `fill-${view.state.chosen.indexOf(point.id)}`;
    if (!figure) return null;
    const got = barred(figure, { low: 0, span: WIDEST, unit: { size: 1 }, bar });
    if (cost) got.append(...barred(cost, { low, span, unit, bar: "fill-cost" }).childNodes);
    return got;
  };
  const pick = node(
    "select",
    {
      "data-focus": "width",
      on: {
        change: () => {
          view.state.width = pick.value;
          view.mark();
        },
      },
    },
    ...widths.map((one) => node("option", { value: one, selected: one === width }, `${one} bits`)),
  );
  const label = node("label", {}, "Thin bar: what the layer alone would cost at ", pick, ` (${unit.name})`);
  return node(
    "div",
    { class: "sensitivity allotted" },
    node("h4", {}, "Bits: what each layer's weights got"),
    ...howBlock(view, points, measured, ({ bits }) => bits.how, "All layers alike"),
    widths.length ? label : "",
    layersTable(view, measured, { label: "Bits by layer", unit: "bits", cell }),
  );
}

const WIDEST = 8; // bits

/* How the figures were measured, of which points where that differs, and which points lack them and why. */
function howBlock(view, points, measured, how, why) {
  const methods = [...new Set(measured.map(how))];
  const paragraphs = methods.map((method) => {
    const letters = measured.filter((point) => how(point) === method).map((point) => letterOf(view, point));
    return node("p", { class: "quiet" }, (methods.length > 1 ? `${letters.join(", ")}: ` : "") + method);
  });
  const without = points.filter((point) => !measured.includes(point)).map((point) => letterOf(view, point));
  return [...paragraphs, without.length ? node("p", { class: "quiet" }, `${why}: ${without.join(", ")}.`) : ""];
}

/* A row per layer of which a point has a figure, under the name of its block. */
function layersTable(view, measured, { label, unit, cell }) {
  const bodies = new Map(); // block -> its rows
  view.section.layers.forEach((layer, index) => {
    const cells = measured.map((point) => cell(point, index));
    if (!cells.some(Boolean)) return;
    const [block, name] = parted(layer);
    if (!bodies.has(block)) bodies.set(block, []);
    bodies
      .get(block)
      .push(
        node(
          "tr",
          {},
          node("th", { scope: "row", title: layer }, ...breakable(name)),
          ...cells.map((one) => node("td", {}, one || "–")),
        ),
      );
  });
  const head = measured.map((point) =>
    node(
      "th",
      { scope: "col", title: point.label },
      node("span", { class: "letter" }, letterOf(view, point)),
      ` ${unit}`,
    ),
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
  const region = node(
    "div",
    { class: "scroll layers", tabindex: 0, role: "region", "aria-label": label, "data-focus": label },
    table,
  );
  table.style.minWidth = `${168 + 140 * measured.length}px`;
  region.style.maxWidth = `${254 + 440 * measured.length}px`;
  return region;
}

/* The power of a thousand in which the largest value is read without zeros before it. */
function unitOf(largest) {
  const power = Math.min(0, 3 * Math.floor(Math.log10(largest) / 3));
  const digits = [...String(-power)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("");
  return { name: power ? `10⁻${digits} nats` : "nats", size: 10 ** power };
}

/* A text that may break behind its dots and slashes: a dotted name, or a number for each of many blocks. */
function breakable(text) {
  return text.split(/(?<=[./])/).flatMap((part) => [part, node("wbr")]);
}

/* "encoder.block.0.layer.1.wo" -> its block and its place there. */
function parted(layer) {
  const [, block, name] = layer.match(/^(.*?\.\d+)\.(.+)$/) ?? [null, "", layer];
  return [block, name];
}

/* A bar from zero, and its figure with the ends of its range. */
function barred([mean, from, to], { low, span, unit, bar }) {
  const share = (size) => `${((100 * size) / span).toFixed(2)}%`,
    text = (size) => short(size / unit.size);
  const drawn = node("rect", {
    class: `bar ${bar}`,
    x: share(Math.min(0, mean) - low),
    width: share(Math.abs(mean)),
    height: "100%",
  });
  return node(
    "div",
    { class: "barred" },
    node("svg", { height: 11, "aria-hidden": "true" }, drawn),
    node("span", {}, text(mean), from === undefined ? null : node("small", {}, `${text(from)} to ${text(to)}`)),
  );
}
