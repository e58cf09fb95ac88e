"use strict";
/* Elements, numbers and marks. */

const SVG = new Set(["svg", "g", "path", "line", "text", "circle", "rect", "title"]);

/* An element; `on` holds listeners, attributes that are null or false are left out (but aria-pressed="false" says
   something), and text is never parsed. */
function node(name, attributes = {}, ...children) {
  const element = SVG.has(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("aria-") && typeof value === "boolean") element.setAttribute(key, String(value));
    else if (key === "on")
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/* Three significant digits; millions and billions by letter, from 10^12 by exponent. */
function short(value) {
  if (!Number.isFinite(value)) return "";
  const size = Math.abs(value);
  if (size >= 1e12) return value.toExponential(2);
  if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}B`;
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  return size >= 1000 ? value.toFixed(0) : String(+value.toPrecision(3));
}

function shown(metric, value) {
  if (metric.difference && value > 0) return `+${short(value)}`;
  return metric.share && Number.isFinite(value) ? `${short(100 * value)} %` : short(value);
}

/* Mean of a figure; NaN where it was not measured, which no comparison lets through. */
function value(point, name) {
  return point.figures[name] ? point.figures[name][0] : NaN;
}

/* Ends of its error bar; both the mean where there is none. */
function ends(point, name) {
  const [mean, low = mean, high = mean] = point.figures[name];
  return [low, high];
}

function range(metric, point) {
  const figure = point.figures[metric.name];
  if (!figure || figure.length < 2) return "";
  const [low, high] = [shown(metric, figure[1]), shown(metric, figure[2])];
  const open = metric.difference && figure[1] <= 0 && figure[2] >= 0 ? ", not separable" : "";
  return low === high ? "" : `${low} to ${high}${open}`;
}

/* The value of a metric, with its range where it has one. */
function formatted(metric, point) {
  const spread = range(metric, point);
  return shown(metric, value(point, metric.name)) + (spread && ` (${spread})`);
}

function count(number, thing) {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}

const WAY = { min: "lower is better", max: "higher is better" };

const SHAPES = [
  // of radius 6 around the origin
  "M6,0A6,6,0,1,1,-6,0A6,6,0,1,1,6,0Z",
  "M-5.3,-5.3H5.3V5.3H-5.3Z",
  "M0,-6.6L6.2,4.8H-6.2Z",
  "M0,-7L7,0L0,7L-7,0Z",
  "M0,6.6L6.2,-4.8H-6.2Z",
  "M-2.2,-6.4H2.2V-2.2H6.4V2.2H2.2V6.4H-2.2V2.2H-6.4V-2.2H-2.2Z",
];
const STAR = "M0,-9.5L2.3,-3.2L9,-2.9L3.8,1.2L5.6,7.7L0,4L-5.6,7.7L-3.8,1.2L-9,-2.9L-2.3,-3.2Z";
const CROSS = "M-7,-7L7,7M7,-7L-7,7";
const COLOURS = 6; // .kind-0 ... of the style sheet

/* A chain's mark: colour and shape together identify it; only points on the front have the colour. */
function mark(section, kind, { dense = false, front = true, slower = false, open = false } = {}) {
  const place = section.kinds.indexOf(kind),
    turn = Math.floor(place / SHAPES.length);
  const shape = dense ? STAR : SHAPES[(place + turn) % SHAPES.length];
  const look = dense
    ? "mark dense"
    : front || open
      ? `mark kind-${place % COLOURS}${front ? "" : " open"}`
      : "mark dominated";
  const group = node("g", {}, node("path", { class: look, d: shape }));
  if (slower) group.append(node("path", { class: "slow", d: CROSS }));
  return group;
}

function swatch(...content) {
  return node(
    "svg",
    { class: "swatch", width: 20, height: 20, viewBox: "-10 -10 20 20", "aria-hidden": "true" },
    ...content,
  );
}

/* A button that copies `text`, or selects it where the browser does not let it. */
function copier(text, source, what) {
  const button = node("button", { type: "button", class: "copy", "aria-label": `Copy ${what}` }, "Copy");
  const label = (text) => {
    button.textContent = text;
    setTimeout(() => {
      button.textContent = "Copy";
    }, 1500);
  };
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      label("Copied");
    } catch {
      getSelection().selectAllChildren(source);
      label("Selected");
    }
  });
  return button;
}

function copyable(text, what, content = text) {
  const code = node("code", {}, content);
  return node("div", { class: "copyable" }, code, copier(text, code, what));
}
