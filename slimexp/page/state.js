/* What the reader has chosen in each section: plain data that survives a reload and new records. */

let DATA = parsed(document.getElementById("data").textContent);

/* Objects hold their own names and no others: a metric or a key may be called "constructor". */
function parsed(text) {
  const own = (_, item) =>
    item && typeof item === "object" && !Array.isArray(item) ? Object.assign(Object.create(null), item) : item;
  return JSON.parse(text, own);
}
const STATES = remembered();
function fresh(section) {
  return {
    x: section.x,
    y: section.y,
    log: {},
    guess: null,
    hidden: [],
    text: "",
    limits: {},
    chosen: [],
    sort: { metric: null, way: "ascending" },
    every: false,
    curve: null,
    width: null,
  };
}

/* States of an earlier visit, from the address; anything else there is ignored. */
function remembered() {
  try {
    const states = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    return states && typeof states === "object" && !Array.isArray(states) ? states : {};
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
  const base = fresh(section),
    stored = Object(STATES[section.title]),
    state = { ...base };
  for (const key of Object.keys(base))
    if (
      base[key] === null ||
      (typeof stored[key] === typeof base[key] && Array.isArray(stored[key]) === Array.isArray(base[key]))
    )
      state[key] = stored[key] ?? base[key];
  const names = section.metrics.map(({ name }) => name),
    ids = section.points.map(({ id }) => id);
  for (const axis of ["x", "y"]) if (!names.includes(state[axis])) state[axis] = section[axis];
  state.hidden = state.hidden.filter((kind) => section.kinds.includes(kind));
  state.chosen = state.chosen.filter((id) => ids.includes(id)).slice(0, LETTERS.length);
  state.limits = Object.fromEntries(
    section.budgets.map(({ metric }) => [metric, state.limits[metric]]).filter(([, limit]) => Number.isFinite(limit)),
  );
  if (![MODEL, ...names].includes(state.sort.metric) || !["ascending", "descending"].includes(state.sort.way))
    state.sort = base.sort;
  STATES[section.title] = state;
  return state;
}
