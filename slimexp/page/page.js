/* State and its views: a section's state is plain data that survives a reload and new records. */

let DATA = JSON.parse(document.getElementById("data").textContent);
const THEMES = { auto: "as the system", light: "light", dark: "dark" };
const POLL = 2000;  // milliseconds between looks for new records

const STATES = remembered();
let VIEWS = [];

function fresh(section) {
  return { x: section.x, y: section.y, log: {}, guess: null, hidden: [], text: "", limits: {}, chosen: [], sort: { metric: null, way: "ascending" }, every: false, curve: null };
}

/* States of an earlier visit, from the address; anything else there is ignored. */
function remembered() {
  try {
    const found = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    return found && typeof found === "object" && !Array.isArray(found) ? found : {};
  } catch {
    return {};
  }
}

/* Browsers refuse an address that changes too often, as under a slider that is drawn. */
let waiting = null;
function remember() {
  clearTimeout(waiting);
  waiting = setTimeout(() => history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(STATES))}`), 300);
}

/* The state of a section, with what no longer exists taken out. */
function stateOf(section) {
  const base = fresh(section), held = Object(STATES[section.title]), state = { ...base };
  for (const key of Object.keys(base))
    if (base[key] === null || (typeof held[key] === typeof base[key] && Array.isArray(held[key]) === Array.isArray(base[key]))) state[key] = held[key] ?? base[key];
  const names = section.metrics.map(({ name }) => name), ids = section.points.map(({ id }) => id);
  for (const axis of ["x", "y"]) if (!names.includes(state[axis])) state[axis] = section[axis];
  state.hidden = state.hidden.filter((kind) => section.kinds.includes(kind));
  state.chosen = state.chosen.filter((id) => ids.includes(id)).slice(0, LETTERS.length);
  state.limits = Object.fromEntries(section.budgets.map(({ metric }) => [metric, state.limits[metric]]).filter(([, limit]) => Number.isFinite(limit)));
  if (![MODEL, ...names].includes(state.sort.metric) || !["ascending", "descending"].includes(state.sort.way)) state.sort = base.sort;
  STATES[section.title] = state;
  return state;
}

class View {
  constructor(section, place) {
    this.section = section;
    this.place = place;
    this.state = stateOf(section);
    this.metrics = new Map(section.metrics.map((metric) => [metric.name, metric]));
    this.active = null;  // the point that the arrow keys stand on
    this.build();
  }

  metric(name) { return this.metrics.get(name); }
  limits() {
    return this.section.budgets.filter(({ metric }) => this.state.limits[metric] !== undefined)
      .map((budget) => ({ ...budget, limit: this.state.limits[budget.metric] }));
  }
  chosen() { return this.state.chosen.map((id) => this.section.points.find((point) => point.id === id)); }

  /* What follows from records and state: who is shown, drawn, on the front, and under which number. */
  derive() {
    const { section, state } = this, words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    this.x = this.metric(state.x) ?? { name: section.x, label: section.x, short: section.x, better: "min" };
    this.y = this.metric(state.y) ?? { name: section.y, label: section.y, short: section.y, better: "min" };
    this.visible = section.points.filter((point) => point.dense
      || (!state.hidden.includes(point.kind) && words.every((word) => point.label.toLowerCase().includes(word))));
    this.drawn = this.visible.filter((point) => point.figures[this.x.name] && point.figures[this.y.name]);
    this.onFront = new Set(front(this.visible, this.x, this.y, section));
    this.guess = this.y.name === section.headline ? section.guess : null;
    this.withGuess = this.guess !== null && (state.guess ?? isNear(this.guess, this.drawn.map((point) => value(point, this.y.name))));
    const listed = [...this.onFront].filter((point) => !point.dense).sort((a, b) => value(a, this.x.name) - value(b, this.x.name));
    this.numbers = new Map(listed.map((point, index) => [point, index + 1]));
  }

  build() {
    const { section } = this;
    this.note = node("p", { class: "quiet" });
    this.canvas = node("div", { class: "canvas" });
    this.tip = node("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.plot = node("div", { class: "plot" }, this.canvas, this.tip);
    this.rowsHolder = node("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": `All points of ${section.title}` });
    this.chosenHolder = node("section", { class: "panel", "aria-label": `Chosen points of ${section.title}` });
    this.legendHolder = node("div", { class: "legend" });
    const every = this.check("every", "every metric", () => this.state.every, (on) => { this.state.every = on; });
    this.element = node("article", { id: `section-${this.place}`, "aria-labelledby": `title-${this.place}` },
      node("h2", { id: `title-${this.place}` }, section.title), this.note,
      node("div", { class: "columns" },
        node("div", {}, axisControls(this), this.plot, this.legendHolder),
        budgetPanel(this)),
      this.chosenHolder,
      node("div", { class: "row" }, node("h3", {}, "All points"), every.element),
      this.rowsHolder, ...growth(this), surroundings(section));
    this.listen();
  }

  check(name, text, get, set) {
    const input = node("input", { type: "checkbox", "data-focus": name, on: { change: () => { set(input.checked); this.update(); } } });
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
      this.canvas.replaceChildren(node("p", { class: "quiet" }, `No point shown has both ${this.x.label} and ${this.y.label}.`));
      return;
    }
    this.places = scatter(this, this.canvas);
    this.stand(this.places.find(({ point }) => point.id === this.active) ?? this.places[0]);
    for (const way of ["x", "y"]) {
      this.logs[way].checked = this.log[way];
      this.logs[way].disabled = !this.canLog[way];
    }
  }

  /* What limits and choice change: who is dimmed, who wears a letter, the best that fits. */
  mark() {
    keepFocus(() => {
      const limits = this.limits(), best = limits.length ? choose(this.section, limits).point : null;
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
      tellResult(this);
      this.drawCurves = () => {};
      chosenPanel(this, this.chosenHolder);
      this.drawCurves();
      remember();
    });
  }

  /* Choose a point, or drop it; of more than there are letters the oldest goes. */
  choose(point, only = false) {
    const { chosen } = this.state, inTable = this.rowsHolder.contains(document.activeElement), top = this.rowsHolder.getBoundingClientRect().top;
    if (only) this.state.chosen = [point.id];
    else this.state.chosen = chosen.includes(point.id) ? chosen.filter((id) => id !== point.id) : [...chosen, point.id].slice(-LETTERS.length);
    this.mark();
    if (inTable) scrollBy(0, this.rowsHolder.getBoundingClientRect().top - top);  // the row stays under the pointer
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
    this.canvas.addEventListener("focusin", (event) => this.hint(this.places.find(({ element }) => element === event.target) ?? null));
    this.canvas.addEventListener("focusout", () => this.hint(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    let width = 0;
    new ResizeObserver(() => {
      if (this.canvas.clientWidth === width || !this.places) return;
      width = this.canvas.clientWidth;
      keepFocus(() => { this.draw(); this.mark(); });
    }).observe(this.canvas);
  }

  key(event) {
    const place = this.places.findIndex(({ element }) => element === event.target), last = this.places.length - 1;
    if (place < 0) return;
    const goes = { ArrowRight: place + 1, ArrowUp: place + 1, ArrowLeft: place - 1, ArrowDown: place - 1, Home: 0, End: last };
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
    const { point } = place, under = this.places.filter((one) => one !== place && Math.hypot(one.x - place.x, one.y - place.y) < 3).length;
    const held = [...new Set([this.x, this.y, ...this.section.metrics])].filter((metric) => point.figures[metric.name]);
    const figures = held.map((metric) => node("div", {}, node("dt", {}, metric.short), node("dd", {}, told(metric, point))));
    this.tip.replaceChildren(node("b", {}, point.label), node("p", {}, [...states(this, point), count(point.seeds.length, "seed")].join(", ") + (under ? `; ${under} more here` : "")), node("dl", {}, ...figures));
    const room = this.plot.clientWidth - this.tip.offsetWidth, right = place.x + 18;
    this.tip.style.left = `${right <= room ? right : Math.max(0, place.x - this.tip.offsetWidth - 18)}px`;
    const fitsBeside = right <= room || place.x - this.tip.offsetWidth - 18 >= 0;
    this.tip.style.top = `${fitsBeside ? Math.max(0, place.y - this.tip.offsetHeight / 2) : place.y + 20}px`;
  }
}

function spoken(view, point) {
  const axes = [view.x, view.y].map((metric) => `${metric.label} ${told(metric, point)}`);
  return [point.label, ...axes, ...states(view, point), count(point.seeds.length, "seed")].join(", ");
}

function summary(view) {
  const { section, visible, drawn, onFront } = view, hidden = section.points.length - visible.length;
  const front = `${onFront.size} of ${count(drawn.length, "drawn point")} on the front of ${view.x.label} (${WAY[view.x.better]}) and ${view.y.label} (${WAY[view.y.better]})`;
  const told = [hidden ? `${front}; ${hidden} hidden by the filter do not count` : front];
  if (visible.length > drawn.length) told.push(`${visible.length - drawn.length} not drawn: not measured in both`);
  if (section.cover !== null) told.push(`Hypervolume of size and quality kept: ${section.cover.toFixed(3)} (1: dense quality for no bytes)`);
  return `${told.join(". ")}.`;
}

function axisControls(view) {
  view.logs = {};
  const choice = (axis) => {
    const group = (known, label) => {
      const options = view.section.metrics.filter((metric) => metric.known === known)
        .map(({ name, label: text, better }) => node("option", { value: name, selected: name === view.state[axis] }, known ? `${text} (${better})` : text));
      return options.length ? node("optgroup", { label }, ...options) : null;
    };
    const select = node("select", { "data-focus": `axis ${axis}`, on: { change: () => {
      view.state[axis] = select.value;
      delete view.state.log[axis];
      view.update();
    } } }, group(true, "metrics"), group(false, "no better known: lower is taken for better"));
    const log = view.check(`log ${axis}`, "log", () => false, (on) => { view.state.log[axis] = on; });
    view.logs[axis] = log.input;
    log.input.setAttribute("aria-label", `logarithmic ${axis} axis`);
    return node("div", { class: "axis-choice" }, node("label", {}, axis === "x" ? "Across " : "Up ", select), log.element);
  };
  const text = node("input", { type: "search", placeholder: "e.g. distill bits=4", value: view.state.text, "data-focus": "text", on: { input: () => {
    view.state.text = text.value;
    view.update();
  } } });
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
    return node("button", { type: "button", "aria-pressed": on, "data-focus": `kind ${kind}`, title: on ? "hide" : "show", on: { click: turn } }, swatch(mark(section, kind)), kind);
  });
  const list = node("ul");
  const add = (content, label) => list.append(node("li", {}, swatch(content), label));
  add(mark(section, "", { dense: true }), "dense (not compressed)");
  if (view.drawn.some((point) => !point.dense && !view.onFront.has(point))) add(mark(section, section.kinds[0], { front: false }), "dominated (grey)");
  if (section.points.some((point) => point.slower)) add(node("path", { class: "slow", d: CROSS }), "slower than dense (crossed, red)");
  if (view.onFront.size) add(node("path", { class: "step", d: "M-10,0H10" }), "front");
  if (view.guess !== null) {
    const far = view.check("guess", "in the picture", () => view.withGuess, (on) => { state.guess = on; });
    add(node("path", { class: "guess", d: "M-10,0H10" }), node("span", {}, `no model (best trivial guess): ${shown(view.y, view.guess)} `, far.element));
  }
  if (view.drawn.some((point) => [view.x, view.y].some(({ name }) => point.figures[name].length > 1)))
    add(node("g", {}, node("path", { class: "bars dense", d: "M0,-9V9" }), node("circle", { class: "mark dense", r: 4 })), "range over seeds; of a latency ratio its interval");
  holder.replaceChildren(node("div", { class: "chains", role: "group", "aria-label": "Chains shown" }, ...chains), list);
}

function growth(view) {
  const values = view.section.growth;
  if (values.length < 2) return [];
  const drawn = node("div"), told = `hypervolume of ${view.section.title} from ${short(values[0])} to ${short(values.at(-1))}`;
  const block = node("details", { class: "growth" }, node("summary", {}, `Growth of the front: ${told} over ${values.length} points`), drawn);
  const series = [{ look: "pick-0", letter: "", name: "hypervolume", steps: values.map((_, index) => index + 1), values }];
  block.addEventListener("toggle", () => { if (block.open) lines(drawn, series, { height: 220, titles: ["points finished", "hypervolume"], from: null, dots: values.length <= 40 }); });
  return [block];
}

function surroundings(section) {
  const block = node("details", { open: section.environments.length > 1 });
  const kinds = new Set(section.environments.map((one) => JSON.stringify(one.hardware)));
  block.append(node("summary", {}, kinds.size > 1
    ? `Environment: ${kinds.size} kinds of hardware, so compare ratios and not milliseconds`
    : "Environment: hardware, versions, git, seeds"));
  for (const { records, seeds, kernels, hardware, versions, git } of section.environments) {
    const list = node("dl");
    const add = (name, told) => list.append(node("dt", {}, name), node("dd", {}, told));
    add("records", `${records}, seeds ${seeds.join(", ")}`);
    add("kernels", kernels.join(", "));
    for (const [name, held] of Object.entries(hardware))
      if (held !== null) add(name.replace("_gb", " (GB)").replace("_", " "), Array.isArray(held) ? held.join(", ") || "none" : String(held));
    add("versions", Object.entries(versions).map((pair) => pair.join(" ")).join(", "));
    add("git", git ? `${git.commit.slice(0, 12)}${git.dirty ? ", with changes" : ""}` : "not in a repository");
    block.append(list);
  }
  return block;
}

/* Do `change`, and give the keyboard back to the element that had it. */
function keepFocus(change) {
  const held = document.activeElement?.dataset?.focus, home = document.activeElement?.closest?.("article")?.id;
  change();
  if (!held || !home || document.activeElement?.dataset?.focus === held) return;
  const again = [...document.querySelectorAll(`#${home} [data-focus]`)].find((element) => element.dataset.focus === held);
  again?.focus({ preventScroll: true });
}

function show() {
  const noted = DATA.newest ? `${count(DATA.records, "record")}, the newest of ${DATA.newest.replace("T", " ").replace("+00:00", " UTC")}. ` : "";
  document.getElementById("about").textContent = `${noted}Choose a point by click, tap, or Tab, arrow keys and Enter.`;
  keepFocus(() => {
    VIEWS = DATA.sections.map((section, place) => new View(section, place));
    const main = document.getElementById("main"), contents = document.getElementById("contents");
    main.replaceChildren(...VIEWS.map((view) => view.element));
    if (DATA.message) main.replaceChildren(node("p", { class: "quiet" }, `Nothing to show yet: ${DATA.message}`));
    contents.hidden = VIEWS.length < 2;
    contents.replaceChildren(...VIEWS.map((view) => node("button", { type: "button", on: { click: () => view.element.scrollIntoView() } }, view.section.title)));
    for (const view of VIEWS) view.update();
  });
}

/* Ask the page's own server for new records; state and place stay. */
async function poll(version) {
  const live = document.getElementById("live");
  live.hidden = false;
  try {
    const reply = await fetch("data.json", { headers: { "If-None-Match": version }, cache: "no-store" });
    if (reply.status === 200) {
      version = reply.headers.get("ETag");
      DATA = await reply.json();
      const at = scrollY;
      show();
      scrollTo(0, at);
    }
    live.textContent = "Live: new records appear by themselves.";
    live.className = "";
  } catch {
    live.textContent = "The server does not answer: this is what it last knew.";
    live.className = "warn";
  }
  setTimeout(poll, POLL, version);
}

function themed() {
  const button = document.getElementById("theme"), root = document.documentElement, names = Object.keys(THEMES);
  let theme = "auto";
  try { theme = localStorage.getItem("slimexp-theme") ?? theme; } catch { /* no storage: the choice ends with the visit */ }
  if (!names.includes(theme)) theme = "auto";
  const wear = () => {
    root.dataset.theme = theme;
    button.textContent = `Colours: ${THEMES[theme]}`;
  };
  button.addEventListener("click", () => {
    theme = names[(names.indexOf(theme) + 1) % names.length];
    try { localStorage.setItem("slimexp-theme", theme); } catch { /* as above */ }
    wear();
  });
  wear();
}

themed();
show();
if (DATA.live) poll(DATA.version);
