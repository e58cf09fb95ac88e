/* Pictures of a search: what was predicted of its candidates, and what came. */

const FEW = 4; // candidates from which on a rank correlation is given

/* Pictures of what was predicted (across) and what came (up). */
function chartsOf(search, budget) {
  const nats = "nats per token",
    charts = [
      {
        title: "Does the sum of scores predict the score of the whole?",
        axes: [`sum of scores (${nats})`, `whole (${nats})`],
        of: ({ added, whole }) => [added, whole],
        same: true,
      },
      {
        title: "Does the score of the whole predict the short training?",
        axes: [`whole, untrained (${nats})`, `${search.headlineTitle}, validation`],
        of: ({ whole, short }) => [whole, short],
        flip: search.better === "max",
      },
      ...Object.entries(search.costs).map(([name, { title }]) => ({
        title: "Does the composed cost predict the measured one?",
        axes: [`${title}, composed`, "measured"],
        of: ({ costs }) => costs[name] ?? [null, null],
        same: true,
        cost: true,
        limit: budget.limits[name],
        counted: name === "parameters",
      })),
    ];
  return charts.filter(({ counted }) => !counted);
}

/* All pictures: first their places, since each is drawn as wide as its place. */
function drawPredicted(view) {
  const charts = chartsOf(view.search, view.budget).map((chart) => {
    const holder = node("div", { class: "canvas" }),
      readout = node("p", { class: "quiet readout" });
    return { ...chart, holder, readout };
  });
  view.charts.replaceChildren(
    ...charts.map(({ title, holder, readout }) =>
      node("div", { class: "panel" }, node("h4", {}, title), holder, readout),
    ),
  );
  for (const chart of charts) predicted(view, chart);
}

function predicted(view, { title, axes, of, holder, readout, same = false, cost = false, flip = false, limit }) {
  const pairs = view.budget.candidates
    .map((candidate) => ({ candidate, pair: of(candidate) }))
    .filter(({ pair }) => pair.every((one) => one !== null));
  if (!pairs.length) return holder.replaceChildren(node("p", { class: "quiet" }, "Nothing was measured of it."));
  const summary = [
    count(pairs.length, "candidate"),
    ...(cost ? [`off by ${short(100 * farthest(pairs))} % at most`] : ranked(pairs, flip)),
    ...(same ? ["dashed: as predicted"] : []),
  ].join("; ");
  const { svg, box } = canvas(holder, 260, { role: "img", "aria-label": `${title} ${summary}` });
  const [across, up] = [0, 1].map((at) => pairs.map(({ pair }) => pair[at]));
  const near = limit && Math.max(...across, ...up) > 0.5 * limit ? [limit] : [];
  const log = (values) => spansMuch(values, { better: "min" }, DATA.logFrom);
  const x = scale([...across, ...near], { log: log(across), start: box.left, end: box.right, spacing: 72 }),
    y = scale([...up, ...near], { log: log(up), start: box.bottom, end: box.top, spacing: 36 });
  frame(svg, box, x, y, axes);
  const [low, high] = [Math.max(x.low, y.low), Math.min(x.high, y.high)];
  if (same && low < high && log(across) === log(up))
    svg.append(node("path", { class: "guess", d: `M${x.at(low)},${y.at(low)}L${x.at(high)},${y.at(high)}` }));
  if (near.length) {
    const at = y.at(limit);
    svg.append(
      node("rect", {
        class: "outside",
        x: box.left,
        y: box.top,
        width: box.right - box.left,
        height: Math.max(0, at - box.top),
      }),
      node("path", { class: "limit", d: `M${box.left},${at}H${box.right}` }),
    );
  }
  const places = pairs
    .sort((a, b) => NEXT[b.candidate.fate] - NEXT[a.candidate.fate])
    .map(({ candidate, pair }) => {
      const place = { candidate, pair, x: x.at(pair[0]), y: y.at(pair[1]) };
      const element = node(
        "g",
        { class: "point", transform: `translate(${place.x.toFixed(1)} ${place.y.toFixed(1)})` },
        node("circle", { class: "halo", r: 11 }),
        fateMark(candidate),
      );
      view.marks.get(candidate).push(element);
      svg.append(element);
      return place;
    });
  listenPredicted(view, holder, places, (place) => {
    readout.textContent = place
      ? `${place.candidate.label}: ${fine(place.pair[0])} predicted, ${fine(place.pair[1])} came`
      : summary;
  });
}

function listenPredicted(view, holder, places, say) {
  const at = (event) => {
    const frame = holder.getBoundingClientRect();
    return nearest(places, event.clientX - frame.left, event.clientY - frame.top);
  };
  const point = (event) => {
    const place = at(event);
    holder.classList.toggle("over", Boolean(place));
    view.hint(place?.candidate ?? null);
    say(place);
  };
  say(null);
  holder.addEventListener("pointermove", point);
  holder.addEventListener("pointerdown", point);
  holder.addEventListener("pointerleave", () => {
    view.hint(null);
    say(null);
  });
  holder.addEventListener("click", (event) => {
    const row = view.rows.get(at(event)?.candidate);
    row?.scrollIntoView({ block: "nearest" });
  });
}

/* The largest difference of a composed cost from the measured one, as a share of that. */
function farthest(pairs) {
  return Math.max(...pairs.map(({ pair: [composed, measured] }) => Math.abs(composed - measured) / measured));
}

function ranked(pairs, flip) {
  const rank = pairs.length >= FEW ? correlation(pairs.map(({ pair }) => pair)) : NaN;
  return Number.isNaN(rank) ? [] : [`rank correlation ${(flip ? -rank : rank).toFixed(2)}`];
}

/* Spearman's rank correlation; equal values share the mean of their ranks. */
function correlation(pairs) {
  const ranks = [0, 1].map((at) =>
    pairs.map((pair) => {
      const below = pairs.filter((other) => other[at] < pair[at]).length,
        equal = pairs.filter((other) => other[at] === pair[at]).length;
      return below + (equal - 1) / 2 - (pairs.length - 1) / 2;
    }),
  );
  const sum = (a, b) => a.reduce((total, one, index) => total + one * b[index], 0);
  return sum(ranks[0], ranks[1]) / Math.sqrt(sum(ranks[0], ranks[0]) * sum(ranks[1], ranks[1]));
}
