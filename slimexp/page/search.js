/* Searches: the model of each budget, and of one budget all candidates: what was predicted, what came, and why they lost. */

const FATES = {
  promoted: ["promoted: trained in full", SHAPES[0], "mark kind-0"],
  trained: ["lost after a short training", SHAPES[1], "mark kind-1"],
  failed: ["its training failed", SHAPES[2], "mark kind-2"],
  over: ["over the budget as measured", CROSS, "slow"],
  scored: ["lost before any training", SHAPES[3], "mark dominated"],
};
const NEXT = { promoted: 0, trained: 1, failed: 2, over: 3, scored: 4 };

class SearchView {
  constructor(search, place) {
    this.search = search;
    this.state = searchState(search);
    this.element = node(
      "article",
      { id: `search-${place}`, "aria-labelledby": `search-title-${place}` },
      node("h2", { id: `search-title-${place}` }, `Search: ${search.name}`),
    );
    if (search.message) {
      this.element.append(node("p", { class: "warn" }, search.message));
      return;
    }
    this.answers = node("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Budgets of the search" });
    this.title = node("h3");
    this.legend = node("div", { class: "legend" });
    this.charts = node("div", { class: "predicted" });
    this.rowsHolder = node("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Candidates" });
    this.element.append(
      node("p", { class: "quiet" }, searchSummary(search)),
      this.answers,
      node("div", { class: "row" }, this.title),
      this.charts,
      this.legend,
      this.rowsHolder,
    );
    let width = 0;
    new ResizeObserver(() => {
      if (this.charts.clientWidth === width) return;
      width = this.charts.clientWidth;
      this.draw();
    }).observe(this.charts);
  }

  get budget() {
    return this.search.budgets[this.state.budget];
  }

  update() {
    if (this.search.message) return;
    keepFocus(() => {
      const { candidates } = this.budget;
      this.answers.replaceChildren(answersTable(this));
      this.title.textContent = `${limitsOf(this.search, this.budget)}: ${count(candidates.length, "candidate")}`;
      this.rows = candidatesTable(this, this.rowsHolder);
      this.draw();
    });
    remember();
  }

  draw() {
    if (!this.rows) return;
    this.marks = new Map(this.budget.candidates.map((candidate) => [candidate, []]));
    drawPredicted(this);
    this.legend.replaceChildren(fatesLegend(this.budget));
  }

  /* A candidate under the pointer: in its row and in every picture. */
  hint(candidate) {
    for (const [one, row] of this.rows) row.classList.toggle("hinted", one === candidate);
    for (const [one, marks] of this.marks)
      for (const mark of marks) mark.classList.toggle("hovered", one === candidate);
  }
}

/* Budget and order that the reader chose, as far as they still exist. */
function searchState({ name, budgets }) {
  const stored = Object(STATES[`search ${name}`]),
    sort = Object(stored.sort);
  const state = {
    budget: Number.isInteger(stored.budget) && budgets[stored.budget] ? stored.budget : 0,
    sort: {
      metric: typeof sort.metric === "string" ? sort.metric : null,
      way: sort.way === "descending" ? "descending" : "ascending",
    },
  };
  STATES[`search ${name}`] = state;
  return state;
}

function searchSummary({ budgets, seconds, off, costs }) {
  const all = budgets.flatMap(({ candidates }) => candidates),
    tried = all.filter(({ short }) => short !== null).length,
    promoted = all.filter(({ fate }) => fate === "promoted").length;
  const whole = Math.round(seconds),
    took = whole < 60 ? `${short(seconds)} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const sentences = [
    `${count(budgets.length, "budget")}, ${count(all.length, "candidate")} scored as a whole, ${tried} trained for a short time, ${promoted} promoted; the last run of it took ${took}`,
  ];
  const errors = Object.entries(off).map(([name, share]) => `${costs[name]?.title ?? name} by ${short(100 * share)} %`);
  if (errors.length) sentences.push(`Composed costs are off by a median of: ${errors.join(", ")}`);
  sentences.push("A score is the divergence from the dense model's answers, in nats per token");
  return `${sentences.join(". ")}.`;
}

function limitsOf({ costs }, { limits }) {
  return `At most ${Object.entries(limits)
    .map(([name, limit]) => `${short(limit)} ${costs[name].unit}`)
    .join(", ")}`;
}

/* The candidate that a budget ends with: of the promoted the best after the short training, on validation text, for what the
   full training is graded on chooses nothing; where none was promoted, the best score of those that were measured to be
   within the budget, if any were. */
function answerOf({ better }, { candidates }) {
  const turn = better === "min" ? 1 : -1,
    reached = ({ short: one }) => (one === null ? Number.MAX_VALUE : turn * one),
    promoted = candidates
      .filter(({ full }) => full !== null)
      .sort((a, b) => reached(a) - reached(b) || a.whole - b.whole);
  const within = candidates.filter(({ fate, whole }) => fate !== "over" && whole !== null);
  const measured = ({ costs }) => Object.values(costs).every(([, cost]) => cost !== null);
  return promoted[0] ?? within.sort((a, b) => measured(b) - measured(a) || a.whole - b.whole)[0] ?? null;
}

/* A row for each budget, whose button shows its candidates. */
function answersTable(view) {
  const { search, state } = view,
    names = Object.keys(search.costs);
  const rows = search.budgets.map((budget, place) => {
    const best = answerOf(search, budget),
      chosen = place === state.budget;
    const choose = () => {
      state.budget = place;
      view.update();
    };
    const button = node(
      "button",
      { type: "button", "aria-pressed": chosen, "data-focus": `budget ${place}`, on: { click: choose } },
      limitsOf(search, budget),
    );
    const costs = names.map((name) => {
      const [composed, measured] = best?.costs[name] ?? [null, null],
        limit = budget.limits[name];
      const cell = node("td", {}, short(measured ?? composed ?? NaN));
      if (limit && (measured ?? composed) !== null)
        cell.append(node("small", {}, `${short((100 * (measured ?? composed)) / limit)} % of the budget`));
      return cell;
    });
    return node(
      "tr",
      { class: chosen ? "chosen" : null },
      node("th", { scope: "row" }, button),
      node("td", {}, ...(best ? finalOf(best) : [])),
      ...costs,
      node("td", { class: "words" }, best ? shapeOf(best) : "none is within it"),
      node("td", {}, String(budget.candidates.length)),
    );
  });
  return node(
    "table",
    { class: "answers" },
    node("caption", {}, "The model of each budget. Its button shows the candidates below."),
    node(
      "thead",
      {},
      node(
        "tr",
        {},
        ...[
          "budget",
          search.headlineTitle,
          ...names.map((name) => search.costs[name].title),
          "model",
          "candidates",
        ].map((text) => node("th", { scope: "col", class: text === "model" ? "words" : null }, text)),
      ),
    ),
    node("tbody", {}, ...rows),
  );
}

/* Headline after the full training, and how near it is to the dense model, with its interval. */
function finalOf({ full, quality }) {
  if (full === null) return [node("span", { class: "quiet" }, "not trained")];
  const cells = [fine(full)];
  if (quality) {
    const share = quality.name === "kept",
      [mean, low, high] = quality.figure.map((one) => shown({ share }, one));
    const what = share ? `kept ${mean}` : `${quality.name.replace("_ratio", "").replaceAll("_", " ")} ${mean} x dense`;
    cells.push(node("small", {}, what + (low === undefined ? "" : ` (${low}\u00a0to\u00a0${high})`)));
  }
  return cells;
}

/* Blocks as a row of cells with their bits, and the widths in words. */
function shapeOf({ stacks, widths, label, evolved }, found = false) {
  const rows = stacks.map(([stack, blocks]) =>
    node(
      "span",
      { class: "blocks", role: "img", "aria-label": `${stack} ${blocks}`, title: stack },
      stacks.length > 1 ? node("small", {}, stack.slice(0, 3)) : null,
      ...[...blocks].map((bits) =>
        node("span", { class: bits === "." ? "block gone" : `block bits-${bits}` }, bits === "." ? "" : bits),
      ),
    ),
  );
  return node(
    "span",
    { class: "shape", title: label },
    ...rows,
    node("span", { class: "widths" }, ...breakable(stacks.length ? widths : label)),
    found && evolved ? node("small", {}, "found by evolution") : null,
  );
}

/* Four significant digits: candidates differ by little. */
function fine(value) {
  return Number.isFinite(value) ? String(+value.toPrecision(4)) : "";
}

function fateMark({ fate }) {
  const [, shape, look] = FATES[fate];
  return node("path", { class: look, d: shape });
}

function fatesLegend({ candidates }) {
  const list = node("ul");
  for (const [fate, [words]] of Object.entries(FATES)) {
    const many = candidates.filter((one) => one.fate === fate).length;
    if (many) list.append(node("li", {}, swatch(fateMark({ fate })), `${words} (${many})`));
  }
  return list;
}
