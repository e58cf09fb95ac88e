/* Curves: lines over steps with a read-out. */

/* Lines over steps: [{look, letter, name, steps, values}]; a value that was not finite leaves a gap. */
function lines(holder, series, { height, titles, from, dots = true }) {
  const { svg, box } = canvas(holder, height, {
    role: "img",
    "aria-label": `${titles[1]} over ${titles[0]}: ${series.map(ending).join("; ")}`,
  });
  const values = series.flatMap((one) => one.values.filter((two) => two !== null)),
    all = series.flatMap((one) => one.steps);
  if (!values.length) return holder.replaceChildren(node("p", { class: "quiet" }, "No finite value was logged."));
  const log = from && spansMuch(values, { better: "min" }, from);
  const x = scale([0, ...all], { log: false, start: box.left, end: box.right - 14, spacing: 72 });
  const y = scale(values, { log, start: box.bottom, end: box.top, spacing: 36 });
  frame(svg, box, x, y, [titles[0], log ? `${titles[1]} (log)` : titles[1]]);
  for (const one of series) {
    let path = "",
      open = false;
    one.values.forEach((two, index) => {
      if (two !== null) path += `${open ? "L" : "M"}${x.at(one.steps[index]).toFixed(1)},${y.at(two).toFixed(1)}`;
      open = two !== null;
    });
    svg.append(node("path", { class: `line ${one.look}`, d: path }));
    const finite = one.values.map((two, index) => ({ two, index })).filter(({ two }) => two !== null);
    if (dots && finite.length <= 40)
      for (const { two, index } of finite)
        svg.append(node("circle", { class: `knot ${one.look}`, cx: x.at(one.steps[index]), cy: y.at(two), r: 2.6 }));
    const last = finite.at(-1);
    if (last)
      svg.append(
        node("text", { class: "note letter", x: x.at(one.steps[last.index]) + 6, y: y.at(last.two) + 4 }, one.letter),
      );
  }
  read(holder, svg, box, series, x);
}

/* Under the pointer: the nearest step and what every line has there. */
function read(holder, svg, box, series, x) {
  const rule = node("path", { class: "rule" });
  const readout = node("p", { class: "quiet readout", "aria-hidden": "true" });
  const steps = [...new Set(series.flatMap((one) => one.steps))].sort((a, b) => a - b);
  svg.append(rule);
  holder.append(readout);
  svg.addEventListener("pointermove", (event) => {
    const away = (step) => Math.abs(svg.getBoundingClientRect().left + x.at(step) - event.clientX);
    const step = steps.reduce((best, one) => (away(one) < away(best) ? one : best));
    const here = series.filter((one) => one.steps.includes(step));
    const values = here.map(({ name, steps: own, values }) => [name, values[own.indexOf(step)]]);
    rule.setAttribute("d", `M${x.at(step)},${box.top}V${box.bottom}`);
    const terms = values.map(([name, number]) => `${name}: ${short(number) || "not finite"}`);
    readout.textContent = [`step ${step}`, ...terms].join("; ");
  });
  svg.addEventListener("pointerleave", () => {
    rule.removeAttribute("d");
    readout.textContent = "";
  });
}

function ending({ name, values }) {
  const finite = values.filter((one) => one !== null);
  return finite.length ? `${name} from ${short(finite[0])} to ${short(finite.at(-1))}` : `${name}: not finite`;
}
