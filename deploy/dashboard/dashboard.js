// Asks Prometheus for every panel of panels.json, and draws what it says.
//
// Prometheus is where this page comes from (its --web.user-assets), or `?prometheus=URL`. What the reader chose stands in the
// address, so that it can be sent to somebody: `?job=rewarm&range=3600&theme=dark`.

import { element, format, plot } from "./plot.js";

const RANGES = { 900: "15 min", 3600: "1 h", 21600: "6 h", 86400: "1 d", 604800: "7 d" };
const REFRESH_SECONDS = 15;
const POINTS = 240; // of a line, at most: a pixel or two each
const SHORTEST_RATE_SECONDS = 60; // four scrapes of 15 s, fewer make a rate of nothing

const address = new URL(location.href);
const chosen = (name, otherwise) => address.searchParams.get(name) ?? otherwise;
const prometheus = chosen("prometheus", address.pathname.includes("/user/") ? address.href.split("/user/")[0] : address.origin).replace(/\/$/, "");
const state = document.getElementById("state");

function choose(name, value) {
  address.searchParams.set(name, value);
  history.replaceState(null, "", address);
}

async function ask(path, parameters) {
  const reply = await fetch(`${prometheus}/api/v1/${path}`, { method: "POST", body: new URLSearchParams(parameters) });
  const answer = await reply.json();
  if (answer.status !== "success") throw new Error(answer.error);
  return answer.data.result;
}

/** Grafana's words in a query, for this page's service and time. */
function filled(expr, { step }) {
  return expr
    .replaceAll("$job", chosen("job", ".+"))
    .replaceAll("$__rate_interval", `${Math.max(SHORTEST_RATE_SECONDS, step + REFRESH_SECONDS)}s`);
}
const legend = (text, labels) => text.replace(/{{(\w+)}}/g, (_, label) => labels[label] ?? "").replace(/\s+/g, " ").trim();

/** Names of the variants: one has one colour in all panels, so that the eye carries it from plot to plot. */
let variants = [];

/** Colours of the lines of one query: the variant's where each has a line of its own, else in turn. */
function colours(answer) {
  const own = new Set(answer.map(({ metric }) => metric.variant)).size === answer.length;
  return answer.map(({ metric }, index) => (own && variants.includes(metric.variant) ? variants.indexOf(metric.variant) : index));
}

const DRAWERS = {
  async lines(panel, place, time) {
    const answers = await Promise.all(panel.queries.map(({ expr }) =>
      ask("query_range", { query: filled(expr, time), start: time.from, end: time.to, step: time.step })));
    const series = answers.flatMap((answer, index) => {
      const chosen = colours(answer);
      return answer.map(({ metric, values }, line) => ({
        name: legend(panel.queries[index].legend, metric),
        colour: chosen[line],
        dashed: index > 0,
        points: values.map(([at, value]) => [at, Number(value)]).filter(([, value]) => Number.isFinite(value)),
      }));
    }).filter(({ points }) => points.length > 0);
    if (series.length === 0) return nothing(panel, place);
    plot(place, panel, series, time);
  },

  async stat(panel, place, time) {
    const [first] = await ask("query", { query: filled(panel.queries[0].expr, time), time: time.to });
    const value = first ? Number(first.value[1]) : NaN;
    place.replaceChildren(element("p", { class: `figure ${judged(panel, value)}` }, format(value, panel.unit)));
  },

  async table(panel, place, time) {
    const found = await ask("query", { query: filled(panel.queries[0].expr, time), time: time.to });
    if (found.length === 0) return nothing(panel, place);
    const columns = panel.columns.filter((column) => column === "value" || found.some(({ metric }) => metric[column]));
    const head = columns.map((column) => element("th", {}, column === "value" ? "replicas" : column));
    const rows = found.map(({ metric, value }) => element("tr", {}, ...columns.map((column) => {
      const text = column === "value" ? value[1] : metric[column] ?? "";
      return element("td", { class: column === "severity" ? text : column }, text);
    })));
    place.replaceChildren(element("div", { class: "scroll" },
      element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows))));
  },
};

function judged(panel, value) {
  if (value >= panel.bad_above || value < panel.bad_below) return "bad";
  if (value >= panel.warn_above || value < panel.warn_below) return "warn";
  return panel.bad_above === undefined && panel.bad_below === undefined ? "" : "good";
}

function nothing(panel, place) {
  place.replaceChildren(element("p", { class: "empty" }, panel.empty ?? "no data"));
}

/** Puts the panels' frames on the page: the plots' places, by panel. */
function frame({ rows }) {
  const places = new Map();
  for (const { title, panels } of rows) {
    const figures = panels.some(({ kind }) => kind === "stat");
    const row = element("div", { class: figures ? "row figures" : "row" });
    for (const panel of panels) {
      const place = element("div", { class: panel.kind === "lines" ? "plot" : "" });
      places.set(panel, place);
      row.append(element("section", { class: `panel ${panel.kind}`, title: panel.kind === "stat" ? panel.help : "" },
        element("h3", {}, panel.title), ...(panel.kind === "stat" ? [] : [element("p", { class: "help" }, panel.help)]), place));
    }
    document.getElementById("rows").append(element("h2", {}, title), row);
  }
  return places;
}

async function refresh(places) {
  const range = Number(chosen("range", 3600));
  const step = Math.max(5, Math.ceil(range / POINTS));
  const to = Math.floor(Date.now() / 1000 / step) * step; // whole steps: lines do not dance from one refresh to the next
  const time = { from: to - range, to, step };
  const failures = [];
  await Promise.all([...places].map(([panel, place]) =>
    DRAWERS[panel.kind](panel, place, time).catch((error) => failures.push(`${panel.title}: ${error.message}`))));
  state.className = failures.length > 0 ? "bad" : "";
  state.textContent = failures.length > 0
    ? `${prometheus} did not answer: ${failures[0]}`
    : `as of ${new Date().toLocaleTimeString("en-GB")}, every ${REFRESH_SECONDS} s`;
}

async function start() {
  const source = await (await fetch("panels.json")).json();
  document.title = source.title;
  const places = frame(source);
  const again = () => refresh(places);

  const theme = () => chosen("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme();
  document.getElementById("theme").addEventListener("click", () => {
    choose("theme", theme() === "dark" ? "light" : "dark");
    document.documentElement.dataset.theme = theme();
  });

  const range = document.getElementById("range");
  range.append(...Object.entries(RANGES).map(([seconds, text]) => new Option(text, seconds)));
  range.value = chosen("range", "3600");
  range.addEventListener("change", () => (choose("range", range.value), again()));

  const job = document.getElementById("job");
  job.append(new Option("all", ".+"));
  job.addEventListener("change", () => (choose("job", job.value), again()));
  const [jobs, served] = await Promise.all(["count by (job) (rewarm_ready)", "count by (variant) (rewarm_route_weight)"]
    .map((query) => ask("query", { query }).catch(() => [])));
  variants = served.map(({ metric }) => metric.variant).sort();
  // The page's choice is a pattern in Grafana's sense: a name is quoted for it, and for the string that it stands in.
  const quoted = (name) => name.replace(/[.*+?^${}()|[\]\\]/g, "\\\\$&");
  job.append(...jobs.map(({ metric }) => new Option(metric.job, quoted(metric.job))));
  job.value = chosen("job", ".+");

  await again();
  setInterval(() => document.hidden || again(), REFRESH_SECONDS * 1000);
  let width = innerWidth;
  addEventListener("resize", () => innerWidth !== width && ((width = innerWidth), again()));
}

start().catch((error) => {
  state.className = "bad";
  state.textContent = error.message;
});
