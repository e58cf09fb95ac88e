/* Scales and axes; the points with their front. */

const ZERO = 0.35; // lowest / highest value below which a linear axis starts at 0
const FAR = 1.5; // spans of the points by which the guess may stretch an axis unless the reader asks for it
const NEAR = 26; // pixels from the pointer at which a point answers

/* A scale from data to pixels with its ticks, linear or logarithmic. */
function scale(values, { log, start, end, spacing, label }) {
  let low = Math.min(...values),
    high = Math.max(...values);
  const most = Math.max(2, Math.min(9, Math.abs(end - start) / spacing));
  let ticks = [],
    step = 0;
  if (log) {
    low /= 1.25;
    high *= 1.25;
    for (const digits of [[1, 2, 5], [1, 3], [1]]) {
      ticks = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        for (const digit of digits) ticks.push(+(digit * 10 ** power).toPrecision(3));
      ticks = ticks.filter((tick) => tick >= low && tick <= high);
      if (ticks.length <= most) break;
    }
    const every = Math.ceil(ticks.length / most);
    ticks = ticks.filter((_, index) => index % every === 0);
  } else {
    const room = 0.07 * (high - low || Math.abs(high) || 1);
    low = low >= 0 && low < ZERO * high ? 0 : low - room;
    high += room;
    const raw = (high - low) / most,
      unit = 10 ** Math.floor(Math.log10(raw));
    step = unit * [1, 2, 5, 10].find((digit) => digit * unit >= raw * 0.999);
    for (let index = Math.ceil(low / step); index * step <= high; index++) ticks.push(+(index * step).toPrecision(12));
  }
  const place = log ? Math.log : (one) => one;
  const at = (one) => start + ((place(one) - place(low)) / (place(high) - place(low))) * (end - start);
  const text = (tick) => (label ? label(tick) : tickText(tick, step, high));
  return { at, ticks, text, low, high };
}

/* As many digits as distinguish neighbouring ticks. */
function tickText(tick, step, high) {
  if (!step || Math.abs(high) >= 1e4 || step >= 1) return short(tick);
  return tick.toFixed(Math.min(12, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))));
}

/* Whether an axis is logarithmic unless the reader says otherwise: costs and errors that span much. */
function spansMuch(values, metric, from) {
  const low = Math.min(...values),
    high = Math.max(...values);
  return metric.better === "min" && low > 0 && high / low >= from;
}

/* Whether the points still fill the picture when it shows the guess too. */
function isNear(guess, values) {
  const low = Math.min(...values),
    high = Math.max(...values);
  return Math.max(low - guess, guess - high) <= FAR * (high - low);
}

function titled({ label, better }) {
  return better === "min" ? `${label}  ← better` : `${label}  better →`;
}

function frame(svg, box, x, y, titles) {
  for (const tick of x.ticks) {
    svg.append(node("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: box.top, y2: box.bottom }));
    svg.append(
      node("text", { class: "tick", x: x.at(tick), y: box.bottom + 17, "text-anchor": "middle" }, x.text(tick)),
    );
  }
  for (const tick of y.ticks) {
    svg.append(node("line", { class: "grid", x1: box.left, x2: box.right, y1: y.at(tick), y2: y.at(tick) }));
    svg.append(node("text", { class: "tick", x: box.left - 7, y: y.at(tick) + 4, "text-anchor": "end" }, y.text(tick)));
  }
  const middle = (box.top + box.bottom) / 2;
  svg.append(
    node("path", { class: "axis", d: `M${box.left},${box.top}V${box.bottom}H${box.right}` }),
    node("text", { x: (box.left + box.right) / 2, y: box.bottom + 38, "text-anchor": "middle" }, titles[0]),
    node("text", { transform: `translate(13 ${middle}) rotate(-90)`, "text-anchor": "middle" }, titles[1]),
  );
}

function canvas(holder, height, attributes) {
  const width = Math.max(holder.clientWidth, 260);
  const box = { left: 66, right: width - 14, top: 14, bottom: height - 46 };
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height, ...attributes });
  holder.replaceChildren(svg);
  return { svg, box, width };
}

/* Draw the points; returns where each is, to be found by pointer and key: [{point, element, x, y}], left to right. */
function scatter(view, holder) {
  const { section, state, drawn, x: mx, y: my, onFront } = view;
  const height = Math.round(Math.max(320, Math.min(520, holder.clientWidth * 0.66)));
  const label = `${section.title}: ${count(drawn.length, "point")}, ${mx.label} across, ${my.label} up`;
  const { svg, box } = canvas(holder, height, { role: "listbox", "aria-multiselectable": "true", "aria-label": label });
  const others = section.published.filter(({ figures }) => figures[mx.name] && figures[my.name]);
  const reach = (metric) => [...drawn, ...others].flatMap((point) => ends(point, metric.name));
  const across = reach(mx),
    up = [...reach(my), ...(view.withGuess ? [view.guess] : [])];
  view.canLog = { x: Math.min(...across) > 0, y: Math.min(...up) > 0 };
  const isLog = (way, values, metric) =>
    view.canLog[way] && (state.log[way] ?? spansMuch(values, metric, DATA.logFrom));
  view.log = { x: isLog("x", across, mx), y: isLog("y", up, my) };
  const percent = (metric) => (metric.share ? (tick) => `${+(100 * tick).toPrecision(3)} %` : null);
  const x = scale(across, { log: view.log.x, start: box.left, end: box.right, spacing: 72, label: percent(mx) });
  const y = scale(up, { log: view.log.y, start: box.bottom, end: box.top, spacing: 42, label: percent(my) });
  frame(svg, box, x, y, [titled(mx), titled(my)]);
  if (view.withGuess)
    svg.append(
      node("line", { class: "guess", x1: box.left, x2: box.right, y1: y.at(view.guess), y2: y.at(view.guess) }),
    );
  const budget = node("g", { class: "budget" });
  svg.append(budget, steps(onFront, mx, my, x, y, box));
  view.drawLimits = () => budget.replaceChildren(...limitLines(view, x, y, box));
  for (const other of others) svg.append(...published(other, x.at(value(other, mx.name)), y.at(value(other, my.name))));
  const rank = (point) => (point.dense ? 2 : onFront.has(point) ? 1 : 0);
  const places = drawn.map((point) => ({ point, x: x.at(value(point, mx.name)), y: y.at(value(point, my.name)) }));
  for (const place of [...places].sort((a, b) => rank(a.point) - rank(b.point))) {
    place.element = dot(view, place, x, y, mx, my);
    svg.append(place.element);
  }
  const notes = node("g", { "aria-hidden": "true" });
  svg.append(notes);
  view.drawNotes = () => notes.replaceChildren(...labels(view, places, box));
  return places.sort((a, b) => a.x - b.x || b.y - a.y);
}

/* What others published: a hollow star with its name, part of no front. */
function published({ label }, left, top) {
  return [
    node("path", { class: "published", d: STAR, transform: `translate(${left} ${top})` }),
    node("text", { class: "note other", x: left + 11, y: top - 6 }, label),
  ];
}

/* The front as a step: for any x, the best y among points at least as good in x. */
function steps(onFront, mx, my, x, y, box) {
  const left = mx.better === "min";
  const corners = [...onFront]
    .sort((a, b) => (left ? 1 : -1) * (value(a, mx.name) - value(b, mx.name)))
    .map((point) => [x.at(value(point, mx.name)), y.at(value(point, my.name))]);
  if (!corners.length) return node("g");
  const rest = corners
    .slice(1)
    .map(([a, b]) => `H${a}V${b}`)
    .join("");
  return node("path", { class: "step", d: `M${corners[0]}${rest}H${left ? box.right : box.left}` });
}

/* The area that a budget on one of the axes excludes, shaded. */
function limitLines(view, x, y, box) {
  return view.limits().flatMap(({ metric, side, limit }) => {
    const across = metric === view.x.name,
      axis = across ? x : y;
    if (!across && metric !== view.y.name) return [];
    const at = Math.max(
      Math.min(axis.at(limit), Math.max(axis.at(axis.low), axis.at(axis.high))),
      Math.min(axis.at(axis.low), axis.at(axis.high)),
    );
    const far = side === "max" ? axis.at(axis.high) : axis.at(axis.low),
      start = Math.min(at, far),
      size = Math.abs(far - at);
    if (!Number.isFinite(at)) return [];
    const area = across
      ? { x: start, y: box.top, width: size, height: box.bottom - box.top }
      : { x: box.left, y: start, width: box.right - box.left, height: size };
    const line = across ? `M${at},${box.top}V${box.bottom}` : `M${box.left},${at}H${box.right}`;
    return [node("rect", { class: "outside", ...area }), node("path", { class: "limit", d: line })];
  });
}

function dot(view, place, x, y, mx, my) {
  const { point } = place,
    front = view.onFront.has(point),
    { section } = view;
  const [left, right] = ends(point, mx.name),
    [low, high] = ends(point, my.name);
  const bars =
    (left < right ? `M${x.at(left)},${place.y}H${x.at(right)}` : "") +
    (low < high ? `M${place.x},${y.at(low)}V${y.at(high)}` : "");
  const body = node(
    "g",
    { transform: `translate(${place.x.toFixed(1)} ${place.y.toFixed(1)})` },
    node("circle", { class: "halo", r: 12 }),
    mark(section, point.kind, { dense: point.dense, front, slower: point.slower, open: view.isOpen(point) }),
  );
  return node(
    "g",
    {
      class: "point",
      role: "option",
      tabindex: -1,
      "data-focus": `dot ${point.id}`,
      "aria-label": spoken(view, point),
    },
    bars
      ? node("path", {
          class: `bars ${point.dense ? "dense" : front ? `kind-${section.kinds.indexOf(point.kind) % COLOURS}` : "dominated"}`,
          d: bars,
        })
      : null,
    body,
  );
}

/* Numbers of front points, names of dense ones and letters of chosen ones, as far as they do not cover one another. */
function labels(view, places, box) {
  const { x: mx, y: my, onFront, state, numbers } = view,
    taken = [],
    elements = [];
  const left = mx.better === "min",
    below = my.better === "min";
  const importance = ({ point }) => (state.chosen.includes(point.id) ? 0 : point.dense ? 1 : 2);
  for (const place of [...places].sort((a, b) => importance(a) - importance(b) || a.x - b.x)) {
    const { point } = place,
      letter = letterOf(view, point);
    const text = [letter, point.dense ? point.label : onFront.has(point) ? numbers.get(point) : null]
      .filter(Boolean)
      .join(" · ");
    if (!text) continue;
    const wide = 7.2 * text.length + 4;
    const roomLeft = place.x - 11 - wide > box.left,
      roomRight = place.x + 11 + wide < box.right;
    const toLeft = left ? roomLeft || !roomRight : !(roomRight || !roomLeft);
    const spot = { x: place.x + (toLeft ? -10 : 10), y: place.y + (below ? 19 : -9) };
    if (spot.y > box.bottom - 2) spot.y = place.y - 9;
    const area = [toLeft ? spot.x - wide : spot.x, spot.y - 11, wide, 13];
    if (taken.some((other) => covers(area, other))) continue;
    taken.push(area);
    elements.push(
      node("text", { class: letter ? "note letter" : "note", ...spot, "text-anchor": toLeft ? "end" : "start" }, text),
    );
  }
  return elements;
}

function covers([x, y, wide, high], [otherX, otherY, otherWide, otherHigh]) {
  return x < otherX + otherWide && otherX < x + wide && y < otherY + otherHigh && otherY < y + high;
}

/* The nearest place within reach, and how many others lie under the same pixels. */
function nearest(places, x, y) {
  let best = null,
    least = NEAR;
  for (const place of places) {
    const away = Math.hypot(place.x - x, place.y - y);
    if (away < least) [best, least] = [place, away];
  }
  return best;
}
