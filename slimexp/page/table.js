/* All points as a table that sorts; a row's button chooses its point. */

const MODEL = "model";

function tableColumns(view) {
  const metrics = view.section.metrics.filter(({ main }) => main || view.state.every);
  const axes = [view.x, view.y].filter((metric) => !metrics.includes(metric));
  return [...metrics, ...axes];
}

/* The visible points in the chosen order; those that were not measured come last in either. */
function sorted(view) {
  const { metric, way } = view.state.sort;
  if (!metric) return view.visible;
  const turn = way === "ascending" ? 1 : -1;
  if (metric === MODEL)
    return [...view.visible].sort((a, b) => turn * a.label.localeCompare(b.label, "en", { numeric: true }));
  const missing = (point) => Number.isNaN(value(point, metric));
  return [...view.visible].sort(
    (a, b) => missing(a) - missing(b) || (missing(a) ? 0 : turn * (value(a, metric) - value(b, metric))),
  );
}

function drawTable(view, holder) {
  const columns = tableColumns(view);
  const rows = sorted(view).map((point) => tableRow(view, point, columns));
  const head = node(
    "tr",
    {},
    headCell(view, MODEL, "model", "model"),
    node("th", { scope: "col" }, "seeds"),
    ...columns.map((metric) => headCell(view, metric.name, metric.short, metric.label)),
  );
  const caption = `${count(rows.length, "point")} of ${view.section.title}. Numbers are those of the front in the picture.`;
  const scrolled = holder.firstElementChild ? [holder.scrollLeft, holder.scrollTop] : [0, 0];
  holder.replaceChildren(
    node(
      "table",
      {},
      node("caption", {}, caption),
      node("thead", {}, head),
      node("tbody", {}, ...rows.map(([row]) => row), guessRow(view, columns), ...otherRows(view, columns)),
    ),
  );
  [holder.scrollLeft, holder.scrollTop] = scrolled;
  return new Map(rows.map(([row, point]) => [point, row]));
}

function headCell(view, name, text, title) {
  const { sort } = view.state,
    active = sort.metric === name;
  const turn = () => {
    view.state.sort = { metric: name, way: active && sort.way === "ascending" ? "descending" : "ascending" };
    view.update();
  };
  const arrow = active ? (sort.way === "ascending" ? "▲" : "▼") : "↕";
  const button = node(
    "button",
    { type: "button", title, "data-focus": `sort ${name}`, on: { click: turn } },
    text,
    node("span", { class: active ? "arrow active" : "arrow", "aria-hidden": "true" }, arrow),
  );
  return node("th", { scope: "col", "aria-sort": active ? sort.way : "none" }, button);
}

function tableRow(view, point, columns) {
  const { section, onFront, numbers } = view,
    front = onFront.has(point);
  const number = numbers.get(point);
  const name = node(
    "button",
    { type: "button", class: "name", "data-focus": `row ${point.id}`, on: { click: () => view.choose(point) } },
    swatch(mark(section, point.kind, { dense: point.dense, front, slower: point.slower, open: view.isOpen(point) })),
    node("span", {}, number ? node("b", {}, `${number} `) : null, point.label, node("span", { class: "letter" })),
  );
  const cells = columns.map((metric) => {
    const lost = point.slower && metric.name.startsWith("latency");
    const noise = point.noisy && metric.name.startsWith("latency") && point.figures[metric.name] ? " ~" : "";
    const slower = lost && metric.name === "latency_ratio" ? " slower" : "";
    const stored = point.unshrunk && metric.name === "size_ratio" ? " (0 % smaller)" : "";
    const text = shown(metric, value(point, metric.name)) + slower + stored + noise;
    const cell = node("td", { class: lost ? "lost" : null }, text);
    const spread = range(metric, point);
    if (spread) cell.append(node("small", {}, spread));
    return cell;
  });
  const row = node(
    "tr",
    { class: point.dense ? "dense" : front ? "front" : "dominated" },
    node("th", { scope: "row" }, name),
    node("td", {}, String(point.seeds.length)),
    ...cells,
  );
  return [row, point];
}

function guessRow(view, columns) {
  const { guess, guessing, headline } = view.section;
  if (guess === null || !guessing) return null;
  const cells = columns.map((metric) =>
    node("td", {}, metric.name === headline ? shown(metric, guess) : metric.name === "kept" ? "0 %" : ""),
  );
  return node(
    "tr",
    { class: "guess" },
    node("th", { scope: "row" }, "no model (best trivial guess)"),
    node("td"),
    ...cells,
  );
}

function otherRows(view, columns) {
  return view.section.published.map((other) =>
    node(
      "tr",
      { class: "guess" },
      node("th", { scope: "row" }, `☆ ${other.label} (published by others)`),
      node("td"),
      ...columns.map((metric) => node("td", {}, formatted(metric, other))),
    ),
  );
}
