/* One section: what follows from its records and its state, and what is drawn again when the state changes. */

class View {
  constructor(section, place) {
    this.section = section;
    this.place = place;
    this.state = stateOf(section);
    this.metrics = new Map(section.metrics.map((metric) => [metric.name, metric]));
    this.active = null; // the point that the arrow keys stand on
    this.build();
  }

  metric(name) {
    return this.metrics.get(name);
  }
  limits() {
    return this.section.budgets
      .filter(({ metric }) => this.state.limits[metric] !== undefined)
      .map((budget) => ({ ...budget, limit: this.state.limits[budget.metric] }));
  }
  chosen() {
    return this.state.chosen.map((id) => this.section.points.find((point) => point.id === id));
  }

  /* What follows from records and state: which points are shown, drawn and on the front, and their numbers. */
  derive() {
    const { section, state } = this,
      words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    this.x = this.metric(state.x) ?? { name: section.x, label: section.x, short: section.x, better: "min" };
    this.y = this.metric(state.y) ?? { name: section.y, label: section.y, short: section.y, better: "min" };
    this.visible = section.points.filter(
      (point) =>
        point.dense ||
        (!state.hidden.includes(point.kind) && words.every((word) => point.label.toLowerCase().includes(word))),
    );
    this.drawn = this.visible.filter((point) => point.figures[this.x.name] && point.figures[this.y.name]);
    this.onFront = new Set(front(this.visible, this.x, this.y, section));
    this.guess = this.y.name === section.headline && section.guessing ? section.guess : null;
    this.withGuess =
      this.guess !== null &&
      (state.guess ??
        isNear(
          this.guess,
          this.drawn.map((point) => value(point, this.y.name)),
        ));
    const listed = [...this.onFront]
      .filter((point) => !point.dense)
      .sort((a, b) => value(a, this.x.name) - value(b, this.x.name));
    this.numbers = new Map(listed.map((point, index) => [point, index + 1]));
  }

  /* Whether probabilities are of the axes and the points that are shown. */
  isDoubtKnown() {
    const { section, state, visible } = this;
    const own = state.x === section.x && state.y === section.y;
    return section.decided !== null && own && visible.length === section.points.length;
  }

  /* Whether the data leave open if a point is dominated. */
  isOpen({ beaten }) {
    const { decided } = this.section;
    return this.isDoubtKnown() && beaten !== null && decided < beaten && beaten < 1 - decided;
  }

  build() {
    const { section } = this;
    this.note = node("p", { class: "quiet" });
    this.canvas = node("div", { class: "canvas" });
    this.tip = node("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.plot = node("div", { class: "plot" }, this.canvas, this.tip);
    this.rowsHolder = node("div", {
      class: "scroll tall",
      tabindex: 0,
      role: "region",
      "aria-label": `All points of ${section.title}`,
    });
    this.chosenHolder = node("section", { class: "panel", "aria-label": `Chosen points of ${section.title}` });
    this.legendHolder = node("div", { class: "legend" });
    const every = this.check(
      "every",
      "every metric",
      () => this.state.every,
      (on) => {
        this.state.every = on;
      },
    );
    this.element = node(
      "article",
      { id: `section-${this.place}`, "aria-labelledby": `title-${this.place}` },
      node("h2", { id: `title-${this.place}` }, section.title),
      this.note,
      node(
        "div",
        { class: "columns" },
        node("div", {}, axisControls(this), this.plot, this.legendHolder),
        budgetPanel(this),
      ),
      this.chosenHolder,
      node("div", { class: "row" }, node("h3", {}, "All points"), every.element),
      this.rowsHolder,
      ...hypervolumeHistory(this),
      environmentPanel(section),
    );
    this.listen();
  }

  check(name, text, get, set) {
    const input = node("input", {
      type: "checkbox",
      "data-focus": name,
      on: {
        change: () => {
          set(input.checked);
          this.update();
        },
      },
    });
    input.checked = get();
    return { input, element: node("label", { class: "check" }, input, ` ${text}`) };
  }

  /* Everything anew: other axes, another filter, another order. */
  update() {
    keepFocus(() => {
      this.derive();
      this.note.textContent = summary(this);
      legend(this, this.legendHolder);
      this.rows = drawTable(this, this.rowsHolder);
      this.draw();
      this.mark();
    });
  }

  draw() {
    this.hint(null);
    if (!this.drawn.length) {
      this.places = [];
      this.drawLimits = this.drawNotes = () => {};
      this.canvas.replaceChildren(
        node("p", { class: "quiet" }, `No point shown has both ${this.x.label} and ${this.y.label}.`),
      );
      return;
    }
    this.places = scatter(this, this.canvas);
    this.stand(this.places.find(({ point }) => point.id === this.active) ?? this.places[0]);
    for (const way of ["x", "y"]) {
      this.logs[way].checked = this.log[way];
      this.logs[way].disabled = !this.canLog[way];
    }
  }

  /* What limits and chosen points change: dimmed points, letters, and the best point that fits. */
  mark() {
    keepFocus(() => {
      const limits = this.limits(),
        best = limits.length ? choose(this.section, limits).point : null;
      const dress = (element, point) => {
        const out = limits.length > 0 && worst(point, limits) > 0;
        element.classList.toggle("out", out);
        element.classList.toggle("fit", limits.length > 0 && !out);
        element.classList.toggle("best", point === best);
        element.classList.toggle("chosen", this.state.chosen.includes(point.id));
      };
      for (const { point, element } of this.places) {
        dress(element, point);
        element.setAttribute("aria-selected", this.state.chosen.includes(point.id));
      }
      for (const [point, row] of this.rows) {
        dress(row, point);
        row.querySelector("button").setAttribute("aria-pressed", this.state.chosen.includes(point.id));
        row.querySelector(".letter").textContent = letterOf(this, point) && ` ${letterOf(this, point)}`;
      }
      this.drawLimits();
      this.drawNotes();
      showResult(this);
      this.drawCurves = () => {};
      comparisonPanel(this, this.chosenHolder);
      this.drawCurves();
      remember();
    });
  }

  /* Choose a point, or drop it; of more than there are letters the oldest goes. */
  choose(point, only = false) {
    const { chosen } = this.state,
      inTable = this.rowsHolder.contains(document.activeElement),
      top = this.rowsHolder.getBoundingClientRect().top;
    if (only) this.state.chosen = [point.id];
    else
      this.state.chosen = chosen.includes(point.id)
        ? chosen.filter((id) => id !== point.id)
        : [...chosen, point.id].slice(-LETTERS.length);
    this.mark();
    if (inTable) scrollBy(0, this.rowsHolder.getBoundingClientRect().top - top); // the row stays under the pointer
  }

  /* The one point that Tab reaches. */
  stand(place) {
    for (const one of this.places) one.element.setAttribute("tabindex", one === place ? 0 : -1);
    this.active = place.point.id;
  }

  listen() {
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return this.places.length ? nearest(this.places, event.clientX - box.left, event.clientY - box.top) : null;
    };
    const hover = (event) => {
      const place = at(event);
      this.canvas.classList.toggle("over", Boolean(place));
      this.hint(place);
    };
    this.canvas.addEventListener("pointermove", hover);
    this.canvas.addEventListener("pointerdown", hover);
    this.canvas.addEventListener("pointerleave", () => this.hint(null));
    this.canvas.addEventListener("click", (event) => {
      const place = at(event);
      if (place) this.choose(place.point);
    });
    this.canvas.addEventListener("focusin", (event) =>
      this.hint(this.places.find(({ element }) => element === event.target) ?? null),
    );
    this.canvas.addEventListener("focusout", () => this.hint(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    let width = 0;
    new ResizeObserver(() => {
      if (this.canvas.clientWidth === width || !this.places) return;
      width = this.canvas.clientWidth;
      keepFocus(() => {
        this.draw();
        this.mark();
      });
    }).observe(this.canvas);
  }

  key(event) {
    const place = this.places.findIndex(({ element }) => element === event.target),
      last = this.places.length - 1;
    if (place < 0) return;
    const goes = {
      ArrowRight: place + 1,
      ArrowUp: place + 1,
      ArrowLeft: place - 1,
      ArrowDown: place - 1,
      Home: 0,
      End: last,
    };
    if (event.key in goes) {
      const next = this.places[Math.max(0, Math.min(last, goes[event.key]))];
      this.stand(next);
      next.element.focus();
    } else if (event.key === "Enter" || event.key === " ") this.choose(this.places[place].point);
    else if (event.key === "Escape") this.hint(null);
    else return;
    event.preventDefault();
  }

  hint(place) {
    for (const one of this.places ?? []) one.element.classList.toggle("hovered", one === place);
    this.tip.hidden = !place;
    if (!place) return;
    const { point } = place,
      under = this.places.filter((one) => one !== place && Math.hypot(one.x - place.x, one.y - place.y) < 3).length;
    // what the table shows at first: every figure, of which exports have a dozen each, is a matter of comparison
    const metrics = [...new Set([this.x, this.y, ...this.section.metrics.filter(({ main }) => main)])].filter(
      (metric) => point.figures[metric.name],
    );
    const figures = metrics.map((metric) =>
      node("div", {}, node("dt", {}, metric.short), node("dd", {}, formatted(metric, point))),
    );
    this.tip.replaceChildren(
      node("b", {}, point.label),
      node(
        "p",
        {},
        [...states(this, point), count(point.seeds.length, "seed")].join(", ") + (under ? `; ${under} more here` : ""),
      ),
      node("dl", {}, ...figures),
    );
    const room = this.plot.clientWidth - this.tip.offsetWidth,
      right = place.x + 18;
    this.tip.style.left = `${right <= room ? right : Math.max(0, place.x - this.tip.offsetWidth - 18)}px`;
    const fitsBeside = right <= room || place.x - this.tip.offsetWidth - 18 >= 0;
    this.tip.style.top = `${fitsBeside ? Math.max(0, place.y - this.tip.offsetHeight / 2) : place.y + 20}px`;
  }
}

function spoken(view, point) {
  const axes = [view.x, view.y].map((metric) => `${metric.label} ${formatted(metric, point)}`);
  return [point.label, ...axes, ...states(view, point), count(point.seeds.length, "seed")].join(", ");
}

function summary(view) {
  const { section, visible, drawn, onFront } = view,
    hidden = section.points.length - visible.length;
  const front = `${onFront.size} of ${count(drawn.length, "drawn point")} on the front of ${view.x.label} (${WAY[view.x.better]}) and ${view.y.label} (${WAY[view.y.better]})`;
  const sentences = [hidden ? `${front}; ${hidden} hidden by the filter do not count` : front];
  if (visible.length > drawn.length) sentences.push(`${visible.length - drawn.length} not drawn: not measured in both`);
  if (view.isDoubtKnown()) {
    const open = drawn.filter((point) => view.isOpen(point)).length,
      unknown = drawn.filter(({ beaten }) => beaten === null).length;
    if (open)
      sentences.push(
        `${open} not separable: dominated with a probability between ${100 * section.decided} and ${100 * (1 - section.decided)} %`,
      );
    if (unknown)
      sentences.push(
        `The error of ${unknown}, or of what may dominate them, is not known (one seed), so neither is how sure their place is`,
      );
  }
  if (section.hypervolume !== null)
    sentences.push(
      `Hypervolume of size and quality: ${section.hypervolume.toFixed(3)} (1: dense quality for no bytes)`,
    );
  return `${[...sentences, ...section.words].join(". ")}.`;
}
