/* The points on the front, and those within a budget: the rules of slimexp.analysis.pareto, slimexp.analysis.section and slimexp.select. */

/* Points that no other beats in both metrics (nowhere worse, somewhere better), and that beat the guess without a model. */
function front(points, x, y, section) {
  const sign = (metric) => (metric.better === "min" ? 1 : -1);
  const candidates = points
    .filter((point) => useful(point, section))
    .map((point) => ({ point, cost: [sign(x) * value(point, x.name), sign(y) * value(point, y.name)] }))
    .filter(({ cost }) => !cost.some(Number.isNaN))
    .sort((a, b) => a.cost[0] - b.cost[0] || a.cost[1] - b.cost[1]);
  const onFront = [];
  let least = Infinity; // second cost of any point that costs less in the first
  for (let start = 0, end; start < candidates.length; start = end) {
    const [first, second] = candidates[start].cost;
    for (end = start; end < candidates.length && candidates[end].cost[0] === first; end++)
      if (candidates[end].cost[1] === second && second < least) onFront.push(candidates[end].point);
    least = Math.min(least, second);
  }
  return onFront;
}

function useful(point, { headline, direction, guess }) {
  if (guess === null) return true;
  const reached = value(point, headline);
  return !(direction === "min" ? reached >= guess : reached <= guess);
}

/* How far a point is outside a limit, as a share of it; at most 0 within. */
function excess(point, { metric, side, limit }) {
  const reached = value(point, metric);
  if (Number.isNaN(reached)) return Infinity;
  return (side === "max" ? reached - limit : limit - reached) / (Math.abs(limit) || 1);
}

function worst(point, limits) {
  return Math.max(0, ...limits.map((limit) => excess(point, limit)));
}

/* The point with the best headline that fits, of equals the smallest; where none fits, the nearest. */
function choose(section, limits) {
  const sign = section.direction === "min" ? 1 : -1;
  const cost = (point) => [
    worst(point, limits),
    sign * value(point, section.headline),
    value(point, "disk_mb") || Infinity,
  ];
  const before = (a, b) => {
    const at = a.findIndex((one, index) => one !== b[index]);
    return at < 0 ? 0 : a[at] - b[at];
  };
  const able = section.points
    .map((point) => ({ point, cost: cost(point) }))
    .filter((one) => Number.isFinite(one.cost[0]) && !Number.isNaN(one.cost[1]));
  able.sort((a, b) => before(a.cost, b.cost));
  return able.length ? { point: able[0].point, fits: able[0].cost[0] <= 0 } : { point: null, fits: false };
}

/* A limit with three digits that still lets `reached` through. */
function outward(reached, side) {
  const near = +reached.toPrecision(3),
    up = side === "max";
  if (up ? near >= reached : near <= reached) return near;
  const unit = 10 ** (Math.floor(Math.log10(Math.abs(reached))) - 2);
  return +(near + (up ? unit : -unit)).toPrecision(3);
}

/* The limits that make a difference: one for each value that a point reaches. */
function stops(section, { metric, side }) {
  const reached = section.points.map((point) => value(point, metric)).filter((one) => !Number.isNaN(one));
  return [...new Set(reached.map((one) => outward(one, side)))].sort((a, b) => a - b);
}
