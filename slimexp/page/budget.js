/* Sliders that say what a model may cost, the best that fits, and the command that names it. */

function budgetPanel(view) {
  const { section } = view;
  const panel = node(
    "section",
    { class: "panel budgets", "aria-label": `Budget for ${section.title}` },
    node("h3", {}, "Budget"),
  );
  const sliders = section.budgets.map((budget) => slider(view, budget));
  const clear = node(
    "button",
    {
      type: "button",
      "data-focus": "clear budget",
      on: {
        click: () => {
          view.state.limits = {};
          for (const one of sliders) one.reset();
          view.mark();
        },
      },
    },
    "Lift all limits",
  );
  panel.append(...sliders.map((one) => one.element), clear);
  view.result = node("div", { class: "result", "aria-live": "polite" });
  panel.append(view.result);
  return panel;
}

/* A stop for each value that a point reaches, and the loosest end for no limit at all. */
function slider(view, budget) {
  const { metric: name, side } = budget,
    metric = view.metric(name),
    set = view.state.limits[name], // of an earlier look, maybe at no point's value by now
    places = [...new Set([...stops(view.section, budget), ...(set === undefined ? [] : [set])])].sort((a, b) => a - b);
  const at = (position) => places[side === "max" ? position : position - 1]; // undefined: no limit
  const free = side === "max" ? places.length : 0;
  const id = `budget-${view.place}-${name}`,
    output = node("output", { for: id });
  const input = node("input", { type: "range", id, min: 0, max: places.length, step: 1, "data-focus": id });
  const update = () => {
    const limit = at(+input.value),
      sign = side === "max" ? "≤" : "≥";
    output.textContent = limit === undefined ? "any" : `${sign} ${shown(metric, limit)}`;
    input.setAttribute(
      "aria-valuetext",
      limit === undefined ? "no limit" : `${side === "max" ? "at most" : "at least"} ${shown(metric, limit)}`,
    );
  };
  input.value = set === undefined ? free : places.indexOf(set) + (side === "max" ? 0 : 1);
  input.addEventListener("input", () => {
    const limit = at(+input.value);
    if (limit === undefined) delete view.state.limits[name];
    else view.state.limits[name] = limit;
    update();
    view.mark();
  });
  update();
  const element = node(
    "div",
    { class: "slider" },
    node("label", { for: id }, `${side === "max" ? "at most" : "at least"}: ${metric.label}`),
    output,
    input,
  );
  return {
    element,
    reset: () => {
      input.value = free;
      update();
    },
  };
}

function showResult(view) {
  const { section, result } = view,
    limits = view.limits(),
    { point, fits } = choose(section, limits);
  const command = [DATA.select, ...limits.map(({ metric, side, limit }) => `${side}_${metric}=${limit}`)].join(" ");
  const within = section.points.filter((one) => worst(one, limits) <= 0).length;
  const head = !point
    ? "No model has every figure asked for."
    : !limits.length
      ? "No limit set. The best of all:"
      : fits
        ? `${within} of ${count(section.points.length, "model")} fit. The best:`
        : "None fits. The nearest:";
  result.replaceChildren(node("p", { class: point && !fits ? "warn" : null }, head));
  if (!point) return;
  const names = [section.headline, section.quality, "disk_mb", "latency_ratio", ...limits.map(({ metric }) => metric)];
  const figures = [...new Set(names)]
    .map((name) => view.metric(name))
    .filter((metric) => metric && point.figures[metric.name]);
  const rivals = rivalsOf(section, limits, point);
  const hidden = view.visible.includes(point) ? "" : " (hidden by the filter)";
  result.append(
    node(
      "p",
      {},
      node(
        "button",
        { type: "button", class: "best", "data-focus": "best", on: { click: () => view.choose(point, true) } },
        point.label,
      ),
      hidden,
    ),
    node(
      "p",
      { class: "quiet" },
      figures.map((metric) => `${metric.short} ${shown(metric, value(point, metric.name))}`).join(", "),
      point.slower ? node("span", { class: "warn" }, " slower than dense") : null,
    ),
    rivals.length
      ? node(
          "p",
          { class: "quiet" },
          `Not separable from it in ${view.metric(section.headline).label}: ${count(rivals.length, "other")} that ${rivals.length > 1 ? "fit" : "fits"}.`,
        )
      : "",
    node("h4", {}, "The command that names it"),
    copyable(command, "the command"),
  );
  if (point.artifacts.length)
    result.append(
      node("h4", {}, point.artifacts.length > 1 ? "Its models, one per seed" : "Its model"),
      ...point.artifacts.map(artifact),
    );
}

/* Others that fit and are not separable from the best: by the interval of the difference, else by error bars that meet. */
function rivalsOf(section, limits, best) {
  const name = section.headline,
    [low, high] = ends(best, name);
  return section.points.filter((point) => {
    if (point === best || !point.figures[name] || worst(point, limits) > 0) return false;
    const found = minus(section, point, best);
    if (found) return found[1] <= 0 && found[2] >= 0;
    const [from, to] = ends(point, name);
    return (low < high || from < to) && from <= high && to >= low;
  });
}

/* A model folder: its path to copy, and a link where the page lies on the same disk. */
function artifact({ path, href }) {
  return copyable(path, "the path", href && location.protocol === "file:" ? node("a", { href }, path) : path);
}
