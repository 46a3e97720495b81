// Draws lines over time as SVG, with axes, a legend, and what a pointer is over.

const SVG = "http://www.w3.org/2000/svg";
const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [190, 52, 8, 8, 20];
const COLOURS = 8; // --c0 to --c7

/** A new element, of HTML or SVG. Text is set as text: labels come from the network. */
export function element(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "g"].includes(name);
  const made = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const SI = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
const digits = (value, unit = "") => `${Number(value.toPrecision(3))}${unit}`;

/** `value` for people, in three digits. */
export function format(value, unit) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (unit === "ratio") return digits(value * 100, "%");
  if (unit === "days") return digits(value, " d");
  if (unit === "seconds" && size >= 60) return digits(value / 60, " min");
  if (unit === "seconds" && size >= 1) return digits(value, " s");
  if (unit === "seconds" && size >= 1e-3) return digits(value * 1e3, " ms");
  if (unit === "seconds") return size === 0 ? "0 s" : digits(value * 1e6, " µs");
  if (unit === "bytes") return digits(value / 2 ** 30, " GiB");
  const [factor, letter] = SI.find(([factor]) => size >= factor) ?? [1, ""];
  return digits(value / factor, letter) + (unit === "per_second" ? "/s" : "");
}

/** Round steps of an axis: 1, 2 or 5 times a power of ten, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => (first + index) * step);
}

/** Places on the time axis: on whole seconds, minutes, hours or days of the reader's clock. */
function times(from, to, count) {
  const steps = [5, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800];
  const step = steps.find((step) => (to - from) / step <= count) ?? 604800;
  const offset = new Date(from * 1000).getTimezoneOffset() * 60;
  const first = Math.ceil((from - offset) / step);
  return Array.from({ length: Math.floor((to - offset) / step) - first + 1 }, (_, index) => (first + index) * step + offset);
}

function clock(time, span) {
  const date = new Date(time * 1000);
  if (span > 2 * 86400) return date.toLocaleDateString(undefined, { month: "short", day: "numeric" });
  return date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", ...(span < 300 ? { second: "2-digit" } : {}) });
}

function range(panel, series) {
  let [low, high] = [Infinity, -Infinity];
  for (const { points } of series) {
    for (const [, value] of points) [low, high] = [Math.min(low, value), Math.max(high, value)];
  }
  // Amounts from zero, so that the eye compares sizes; a reward has no zero that means something.
  if (panel.min !== undefined || panel.unit !== "number") low = Math.min(low, panel.min ?? 0);
  high = Math.max(high, panel.max ?? -Infinity);
  const air = high > low ? 0.08 * (high - low) : Math.abs(high) || 1;
  return [panel.unit === "number" && panel.min === undefined ? low - air : low, panel.max === undefined ? high + air : high];
}

function key(one) {
  return element("svg", { class: "key", viewBox: "0 0 16 8" }, element("line", { x1: 0, x2: 16, y1: 4, y2: 4, ...stroke(one), "stroke-width": 2.5 }));
}
const stroke = ({ colour, dashed }) => ({ style: `stroke: var(--c${colour % COLOURS})`, "stroke-dasharray": dashed ? "5 3" : "none" });
const named = (one, unit, value) => [key(one), element("span", {}, one.name), element("span", { class: "value" }, format(value, unit))];

/**
 * Draws `series` ({name, colour, dashed, points: [[time, value]]}) between the times `from` and `to` into `place`.
 * A gap of more than two steps breaks a line: nothing was measured there.
 */
export function plot(place, panel, series, { from, to, step }) {
  const width = Math.max(place.clientWidth, 200);
  const [low, high] = range(panel, series);
  const x = (time) => LEFT + ((time - from) / (to - from)) * (width - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const drawing = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": panel.title });
  for (const value of ticks(low, high, 4)) {
    drawing.append(
      element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      element("text", { class: "axis", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, format(value, panel.unit)),
    );
  }
  for (const time of times(from, to, width / 90)) {
    if (x(time) < LEFT + 14 || x(time) > width - 20) continue;
    drawing.append(element("text", { class: "axis", x: x(time), y: HEIGHT - 4, "text-anchor": "middle" }, clock(time, to - from)));
  }
  for (const one of series) {
    let [path, before] = ["", -Infinity];
    for (const [time, value] of one.points) {
      // A point alone is drawn as a short stroke, or it would not be seen.
      path += time - before > 2 * step ? `M${x(time) - 0.5},${y(value)}L` : "L";
      path += `${x(time).toFixed(1)},${y(value).toFixed(1)}`;
      before = time;
    }
    drawing.append(element("path", { class: "line", d: path, ...stroke(one) }));
  }
  const legend = element("ul", { class: "legend" });
  legend.append(...series.map((one) => element("li", {}, ...named(one, panel.unit, one.points.at(-1)[1]))));
  place.replaceChildren(drawing, legend);
  follow(place, drawing, panel, series, { from, to, step, x, width });
}

/** Shows what every line is at the pointer's time. */
function follow(place, drawing, panel, series, { from, to, step, x, width }) {
  const cursor = element("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const tip = element("div", { class: "tip", hidden: "" });
  drawing.append(cursor);
  place.append(tip);
  drawing.addEventListener("pointermove", (event) => {
    const at = from + ((event.offsetX - LEFT) / (width - LEFT - RIGHT)) * (to - from);
    const near = ([time]) => Math.abs(time - at);
    const there = series
      .map((one) => [one, one.points.reduce((best, point) => (near(point) < near(best) ? point : best))])
      .filter(([, point]) => near(point) <= step)
      .sort(([, a], [, b]) => b[1] - a[1]);
    if (there.length === 0) return leave();
    const time = there[0][1][0];
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(time));
    cursor.setAttribute("visibility", "visible");
    tip.replaceChildren(
      element("div", {}, new Date(time * 1000).toLocaleString("en-GB")),
      ...there.slice(0, 12).map(([one, [, value]]) => element("div", {}, ...named(one, panel.unit, value))),
    );
    tip.hidden = false;
    const left = x(time) + 12;
    tip.style.left = `${left + tip.offsetWidth > width ? Math.max(0, x(time) - 12 - tip.offsetWidth) : left}px`;
  });
  const leave = () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  };
  drawing.addEventListener("pointerleave", leave);
}
