/* The chosen points side by side: training curves, every figure, and the runs they come from. */

const LETTERS = "ABCDEF";

function letterOf(view, point) {
  const place = view.state.chosen.indexOf(point.id);
  return place < 0 ? "" : LETTERS[place];
}

function comparisonPanel(view, holder) {
  const points = view.chosen();
  if (!points.length) {
    holder.replaceChildren(
      node(
        "p",
        { class: "quiet" },
        `Choose up to ${LETTERS.length} points in the picture or the table to see their training curves, every figure and what made them.`,
      ),
    );
    return;
  }
  const clear = node(
    "button",
    {
      type: "button",
      "data-focus": "clear chosen",
      on: {
        click: () => {
          view.state.chosen = [];
          view.mark();
        },
      },
    },
    "Choose none",
  );
  const scrolled = new Map([...holder.querySelectorAll(".layers")].map((one) => [one.dataset.focus, one.scrollTop]));
  holder.replaceChildren(
    node("div", { class: "row" }, node("h3", {}, `${count(points.length, "point")} chosen`), clear),
    curvesBlock(view, points),
    bitsBlock(view, points),
    layersBlock(view, points),
    comparison(view, points),
  );
  for (const one of holder.querySelectorAll(".layers")) one.scrollTo(0, scrolled.get(one.dataset.focus) ?? 0);
}

/* Training curves of the chosen points, of one term of one stage at a time; a line per seed. */
function curvesBlock(view, points) {
  const block = node("div", { class: "curves" });
  const terms = new Map(); // "distill · loss" -> its lines
  for (const point of points) {
    const place = view.state.chosen.indexOf(point.id),
      letter = LETTERS[place];
    for (const { key, stage, seed } of point.curves.filter(({ key }) => DATA.curves[key])) {
      const { step, terms: logged, each } = DATA.curves[key];
      for (const [term, values] of Object.entries(logged)) {
        const name = `${stage} · ${term.replaceAll("_", " ")}`;
        if (!terms.has(name)) terms.set(name, []);
        terms
          .get(name)
          .push({ look: `pick-${place}`, letter, name: `${letter}, seed ${seed}`, steps: step, values, each });
      }
    }
  }
  if (!terms.size) {
    block.append(
      node(
        "p",
        { class: "quiet" },
        "No training curves: nothing was trained to make these, or the files are not there.",
      ),
    );
    return block;
  }
  const names = [...terms.keys()],
    losses = names.filter((name) => name.endsWith("· loss"));
  const name = terms.has(view.state.curve) ? view.state.curve : (losses.at(-1) ?? names.at(-1));
  const pick = node(
    "select",
    {
      "data-focus": "curve",
      on: {
        change: () => {
          view.state.curve = pick.value;
          view.mark();
        },
      },
    },
    ...names.map((one) => node("option", { value: one, selected: one === name }, one)),
  );
  const drawn = node("div"),
    series = terms.get(name),
    each = Math.max(...series.map((one) => one.each));
  const without = points
    .filter((point) => !series.some(({ letter }) => letter === letterOf(view, point)))
    .map((point) => letterOf(view, point));
  block.append(node("label", {}, "Training curve ", pick), drawn);
  view.drawCurves = () => lines(drawn, series, { height: 260, titles: ["step", name], from: DATA.logFrom });
  if (each > 1) block.append(node("p", { class: "quiet" }, `Each point is the mean of up to ${each} logged values.`));
  if (without.length) block.append(node("p", { class: "quiet" }, `Without this curve: ${without.join(", ")}.`));
  return block;
}

function comparison(view, points) {
  const { section } = view;
  const head = points.map((point) =>
    node(
      "th",
      { scope: "col" },
      node(
        "span",
        { class: "picked" },
        swatch(node("path", { class: `line pick-${view.state.chosen.indexOf(point.id)}`, d: "M-10,0H10" })),
        node("b", {}, `${letterOf(view, point)} `),
        point.label,
      ),
      node(
        "button",
        {
          type: "button",
          class: "drop",
          "aria-label": `Drop ${letterOf(view, point)}: ${point.label}`,
          on: { click: () => view.choose(point) },
        },
        "×",
      ),
    ),
  );
  const row = (name, cells, title) => node("tr", {}, node("th", { scope: "row", title }, name), ...cells);
  const body = section.metrics
    .filter(({ name }) => points.some((point) => point.figures[name]))
    .map((metric) => {
      const reached = points.map((point) => value(point, metric.name)).filter((one) => !Number.isNaN(one));
      const best = Math[metric.better](...reached),
        differ = metric.known && points.length > 1 && new Set(reached.map((one) => shown(metric, one))).size > 1;
      const cells = points.map((point) =>
        node(
          "td",
          { class: differ && value(point, metric.name) === best ? "best" : null },
          formatted(metric, point) || "–",
        ),
      );
      return row(metric.label, cells, metric.known ? `${metric.name}: ${WAY[metric.better]}` : metric.name);
    });
  if (points.slice(1).some((point) => minus(section, point, points[0])))
    body.push(
      row(
        `${section.headline} minus ${letterOf(view, points[0])}`,
        points.map((point) => node("td", { class: "words" }, difference(section, point, points[0]))),
        "with its 95 % interval",
      ),
    );
  const facts = {
    state: (point) => states(view, point).join(", "),
    seeds: (point) => point.seeds.join(", "),
    "stage trained for": (point) => (point.seconds.length ? point.seconds.map((one) => `${one} s`).join(", ") : "–"),
    "computed by": (point) => point.kernels.join(", ") || "–",
    run: (point) => point.runs.join(", "),
    "command line": (point) => (point.overrides ? node("code", { class: "wrap" }, point.overrides) : "–"),
    model: (point) => node("div", {}, ...point.artifacts.map(artifact)),
  };
  body.push(
    ...Object.entries(facts).map(([name, fact]) =>
      row(
        name,
        points.map((point) => node("td", { class: "words" }, fact(point))),
      ),
    ),
  );
  const table = node(
    "table",
    { class: "comparison" },
    node("caption", {}, points.length > 1 ? "Bold: the best of the chosen." : "Every figure."),
    node("thead", {}, node("tr", {}, node("td"), ...head)),
    node("tbody", {}, ...body),
  );
  return node(
    "div",
    { class: "scroll fitted", tabindex: 0, role: "region", "aria-label": "Figures of the chosen points" },
    table,
  );
}

const BASIS = { rows: "on the same rows", dense: "by differences from dense", unpaired: "unpaired" };

/* Headline of a point less another's: difference, the ends of its 95 % interval, and what it rests on. */
function minus({ points }, point, other) {
  const [own, from] = [points.indexOf(point), points.indexOf(other)];
  if (own > from) return point.minus[from];
  const [apart, low, high, basis] = other.minus[own] ?? [];
  return basis && [-apart, -high, -low, basis];
}

function difference(section, point, other) {
  const found = point === other ? null : minus(section, point, other);
  if (!found) return "–";
  const [apart, low, high] = found.slice(0, 3).map((one) => (one > 0 ? "+" : "") + Number(one.toPrecision(3)));
  const open = found[1] <= 0 && found[2] >= 0 ? "not separable, " : "";
  return `${apart} [${low}, ${high}], ${open}${BASIS[found[3]]}`;
}

function states(view, point) {
  const list = [
    point.dense
      ? "not compressed"
      : view.onFront.has(point)
        ? "on the front"
        : !useful(point, view.section)
          ? "no better than no model"
          : view.drawn.includes(point)
            ? "dominated"
            : "not drawn",
  ];
  if (view.isOpen(point))
    list.push(`not separable: dominated with a probability of ${Math.round(100 * point.beaten)} %`);
  if (point.slower) list.push("slower than dense");
  if (point.unshrunk) list.push("0 % smaller: its zeros are stored");
  if (point.noisy) list.push("latency noisy");
  return list;
}
