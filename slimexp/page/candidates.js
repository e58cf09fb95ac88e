/* All candidates of a budget as a table that sorts. */

const CANDIDATE = "candidate";

/* Columns of the candidates: name, words, title, the value that sorts, and what a cell holds. */
function candidateColumns({ search, budget }) {
  const trained = budget.candidates.some(({ short }) => short !== null),
    promoted = budget.candidates.some(({ full }) => full !== null);
  const costs = Object.entries(search.costs).map(([name, cost]) => ({
    name: `cost ${name}`,
    text: cost.title,
    title: "as measured of the whole model, else composed",
    of: ({ costs }) => costs[name]?.[1] ?? costs[name]?.[0] ?? null,
    cell: ({ costs }) => {
      const [composed, measured] = costs[name] ?? [null, null];
      if (measured === null)
        return composed === null ? [] : [node("span", { class: "quiet" }, `${short(composed)} composed`)];
      return [short(measured), composed === null ? null : node("small", {}, `composed ${short(composed)}`)];
    },
  }));
  const nats = (name, text, title) => ({
    name,
    text,
    title,
    of: (one) => one[name],
    cell: (one) => [short(one[name] ?? NaN)],
  });
  return [
    nats("added", "sum of scores", "each choice scored alone, added up; nats per token"),
    nats("whole", "whole score", "all choices together, untrained; nats per token"),
    ...costs,
    ...(trained
      ? [
          {
            name: "short",
            text: `${search.headlineTitle}, short training`,
            title: "on validation text, and less the best one's with its 95 % interval",
            of: ({ short }) => short,
            cell: shortCell,
          },
        ]
      : []),
    ...(promoted
      ? [
          {
            name: "full",
            text: `${search.headlineTitle}, full training`,
            title: "as `measure` says, and how near that is to the dense model with its 95 % interval",
            of: ({ full }) => full,
            cell: (one) => (one.full === null ? [] : finalOf(one)),
          },
        ]
      : []),
  ];
}

function shortCell({ short: reached, shortMinus }) {
  if (reached === null) return [];
  if (!shortMinus) return [fine(reached)];
  const [apart, low, high] = shortMinus.slice(0, 3).map((one) => (one > 0 ? "+" : "") + Number(one.toPrecision(2)));
  const open = shortMinus[1] <= 0 && shortMinus[2] >= 0 ? "not separable, " : "";
  return [
    fine(reached),
    node("small", {}, `${apart} [${low},\u00a0${high}]`),
    node("small", {}, open + BASIS[shortMinus[3]]),
  ];
}

function candidatesTable(view, holder) {
  const { search, state, budget } = view,
    columns = candidateColumns(view);
  const fate = {
    name: "fate",
    text: "what became of it",
    title: "promoted, or why it lost",
    of: (one) => `${NEXT[one.fate]} ${one.lost ?? ""}`,
  };
  const rows = new Map(
    inOrder(search, budget, state, [...columns, fate]).map((candidate) => [
      candidate,
      candidateRow(candidate, columns),
    ]),
  );
  for (const [candidate, row] of rows) {
    row.addEventListener("pointerenter", () => view.hint(candidate));
    row.addEventListener("pointerleave", () => view.hint(null));
  }
  const head = [
    headCell(
      view,
      CANDIDATE,
      CANDIDATE,
      "blocks with the bits of their weights (f: floats, empty: removed), and widths",
    ),
    ...[...columns, fate].map(({ name, text, title }) => headCell(view, name, text, title)),
  ];
  holder.replaceChildren(
    node(
      "table",
      { class: "candidates" },
      node("caption", {}, "All candidates, those that came farthest first."),
      node("thead", {}, node("tr", {}, ...head)),
      node("tbody", {}, ...rows.values()),
    ),
  );
  return rows;
}

function candidateRow(candidate, columns) {
  const { fate, lost, point } = candidate;
  const show = () => {
    const front = VIEWS[point.section],
      own = front?.section.points.find(({ id }) => id === point.id);
    if (!own) return;
    front.choose(own, true);
    front.element.scrollIntoView();
  };
  const ending = [fate === "promoted" ? "promoted" : (lost ?? "")];
  if (point)
    ending.push(
      node(
        "button",
        { type: "button", "data-focus": `show ${candidate.label}`, on: { click: show } },
        "Show on the front",
      ),
    );
  return node(
    "tr",
    { class: fate === "promoted" ? "front" : fate === "scored" ? "dominated" : null },
    node(
      "th",
      { scope: "row" },
      node("span", { class: "entry" }, swatch(fateMark(candidate)), shapeOf(candidate, true)),
    ),
    ...columns.map(({ cell }) => node("td", {}, ...cell(candidate))),
    node("td", { class: "words" }, ...ending),
  );
}

/* Candidates in the chosen order, what is unknown last; at first those that came farthest. */
function inOrder({ better }, { candidates }, { sort }, columns) {
  const turn = sort.way === "ascending" ? 1 : -1,
    column = columns.find(({ name }) => name === sort.metric),
    by = sort.metric === CANDIDATE ? ({ label }) => label : column?.of;
  if (by)
    return [...candidates].sort((a, b) => {
      const [one, other] = [by(a), by(b)];
      if (one === null || other === null) return (one === null) - (other === null);
      return turn * (typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other);
    });
  const sign = better === "min" ? 1 : -1,
    least = (one) => one ?? Infinity;
  const way = (one) => [NEXT[one.fate], sign * (one.full ?? 0), sign * (one.short ?? 0), least(one.whole)];
  return [...candidates].sort((a, b) => {
    const [one, other] = [way(a), way(b)],
      at = one.findIndex((value, index) => value !== other[index]);
    return at < 0 ? 0 : one[at] - other[at];
  });
}
