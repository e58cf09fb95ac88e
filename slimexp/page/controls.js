/* Axes, filters, and what the marks mean. */

function axisControls(view) {
  view.logs = {};
  const choice = (axis) => {
    const group = (known, engine, label) => {
      const options = view.section.metrics
        .filter((metric) => metric.known === known && (!known || metric.engine === engine))
        .map(({ name, label: text, better }) =>
          node("option", { value: name, selected: name === view.state[axis] }, known ? `${text} (${better})` : text),
        );
      return options.length ? node("optgroup", { label }, ...options) : null;
    };
    const select = node(
      "select",
      {
        "data-focus": `axis ${axis}`,
        on: {
          change: () => {
            view.state[axis] = select.value;
            delete view.state.log[axis];
            view.update();
          },
        },
      },
      group(true, false, "metrics"),
      group(true, true, "in other engines, by the name of the format"),
      group(false, null, "no better known: lower is taken for better"),
    );
    const log = view.check(
      `log ${axis}`,
      "log",
      () => false,
      (on) => {
        view.state.log[axis] = on;
      },
    );
    view.logs[axis] = log.input;
    log.input.setAttribute("aria-label", `logarithmic ${axis} axis`);
    return node(
      "div",
      { class: "axis-choice" },
      node("label", {}, axis === "x" ? "Across " : "Up ", select),
      log.element,
    );
  };
  const text = node("input", {
    type: "search",
    placeholder: "e.g. distill bits=4",
    value: view.state.text,
    "data-focus": "text",
    on: {
      input: () => {
        view.state.text = text.value;
        view.update();
      },
    },
  });
  return node("div", { class: "controls" }, choice("x"), choice("y"), node("label", {}, "Filter ", text));
}

/* What the marks mean; chains are buttons that hide and show their points. */
function legend(view, holder) {
  const { section, state } = view;
  const chains = section.kinds.map((kind) => {
    const on = !state.hidden.includes(kind);
    const turn = () => {
      state.hidden = on ? [...state.hidden, kind] : state.hidden.filter((one) => one !== kind);
      view.update();
    };
    return node(
      "button",
      {
        type: "button",
        "aria-pressed": on,
        "data-focus": `kind ${kind}`,
        title: on ? "hide" : "show",
        on: { click: turn },
      },
      swatch(mark(section, kind)),
      kind,
    );
  });
  const list = node("ul");
  const add = (content, label) => list.append(node("li", {}, swatch(content), label));
  add(mark(section, "", { dense: true }), "dense (not compressed)");
  if (view.drawn.some((point) => !point.dense && !view.onFront.has(point)))
    add(mark(section, section.kinds[0], { front: false }), "dominated (grey)");
  if (view.drawn.some((point) => view.isOpen(point) && !view.onFront.has(point)))
    add(mark(section, section.kinds[0], { front: false, open: true }), "dominated? not separable (pale)");
  if (section.published.length) add(node("path", { class: "published", d: STAR }), "published by others");
  if (section.points.some((point) => point.slower))
    add(node("path", { class: "slow", d: CROSS }), "slower than dense (crossed, red)");
  if (view.onFront.size) add(node("path", { class: "step", d: "M-10,0H10" }), "front");
  if (view.guess !== null) {
    const far = view.check(
      "guess",
      "in the picture",
      () => view.withGuess,
      (on) => {
        state.guess = on;
      },
    );
    add(
      node("path", { class: "guess", d: "M-10,0H10" }),
      node("span", {}, `no model (best trivial guess): ${shown(view.y, view.guess)} `, far.element),
    );
  }
  if (view.drawn.some((point) => [view.x, view.y].some(({ name }) => point.figures[name].length > 1)))
    add(
      node("g", {}, node("path", { class: "bars dense", d: "M0,-9V9" }), node("circle", { class: "mark dense", r: 4 })),
      "range over seeds; of one seed ± one standard error; " +
        "of a ratio, of what is kept and of a difference on the same rows the 95 % interval",
    );
  holder.replaceChildren(
    node("div", { class: "chains", role: "group", "aria-label": "Chains shown" }, ...chains),
    list,
  );
}
