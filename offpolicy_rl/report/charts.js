// Reads the values of charts out: pointer, touch, arrow keys. The charts themselves are in the page.
// Data of a chart: high (last step of its axis), linked (shares the cursor with the others), and
// lines [{x: [...], y: [...]}], or a heat map's x [column], labels [row], columns [column][row].
"use strict";

const page = JSON.parse(document.getElementById("data").textContent);
const LEFT = 42, RIGHT = 14, WIDTH = 330, TOP = 24, BASE = 174; // as charts.py draws them

// As charts.number writes them.
function format(value) {
  const size = Math.abs(value);
  for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    const scale = unit === "k" ? 1000 : limit;
    if (size >= limit) return Number((value / scale).toPrecision(3)) + unit;
  }
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size && size < 1e-4) return value.toExponential(2);
  return String(Number(value.toPrecision(3)));
}

function nearest(xs, step) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] > step) high = middle; else low = middle;
  }
  return Math.abs(xs[high] - step) < Math.abs(xs[low] - step) ? high : low;
}

function shares(chart, column) {
  return chart.columns[column]
    .map((share, row) => [share, chart.labels[row]])
    .filter(([share]) => share >= 0.005)
    .sort((a, b) => b[0] - a[0])
    .slice(0, 5)
    .map(([share, label]) => `${Math.round(100 * share)} % lag ${label}`)
    .join(", ");
}

const plots = [...document.querySelectorAll(".plot")].map((element, number) => {
  const figure = element.parentElement;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor off");
  cursor.setAttribute("y1", TOP);
  cursor.setAttribute("y2", BASE);
  element.firstElementChild.append(cursor);
  const values = [...figure.querySelectorAll(".key b")];
  return {
    element, cursor, values, chart: page.charts[number],
    names: values.map((value) => value.parentElement.textContent.replace(value.textContent, "").trim()),
    last: values.map((value) => value.textContent),
    keys: [...figure.querySelectorAll(".key")],
    at: figure.querySelector(".at"),
    step: null,
  };
});

// The steps at which a chart has values.
function steps(chart) {
  return chart.columns ? chart.x : chart.lines.reduce((a, b) => (b.x.length > a.length ? b.x : a), []);
}

function show(plot, wanted) {
  const chart = plot.chart, xs = steps(chart), step = xs[nearest(xs, wanted)];
  plot.step = step;
  const x = LEFT + (step / chart.high) * (WIDTH - LEFT - RIGHT);
  plot.cursor.setAttribute("x1", x);
  plot.cursor.setAttribute("x2", x);
  plot.cursor.classList.remove("off");
  plot.at.textContent = `step ${Math.round(step).toLocaleString("en")}`;
  let told;
  if (chart.columns) {
    told = shares(chart, nearest(chart.x, step));
    plot.values[0].textContent = told;
  } else {
    told = chart.lines.map((line, i) => {
      plot.values[i].textContent = format(line.y[nearest(line.x, step)]);
      return plot.keys[i].classList.contains("off") ? "" : `${plot.names[i]} ${plot.values[i].textContent}`;
    }).filter(Boolean).join(", ");
  }
  plot.element.setAttribute("aria-valuenow", String(step));
  plot.element.setAttribute("aria-valuemax", String(chart.high));
  plot.element.setAttribute("aria-valuetext", `step ${Math.round(step)}: ${told}`);
}

function clear(plot) {
  plot.step = null;
  plot.cursor.classList.add("off");
  plot.at.textContent = "";
  plot.values.forEach((value, i) => { value.textContent = plot.last[i]; });
}

function each(plot, action) {
  for (const other of plot.chart.linked ? plots.filter((p) => p.chart.linked) : [plot]) action(other);
}

for (const plot of plots) {
  const point = (event) => {
    const box = plot.element.firstElementChild.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    const step = ((x - LEFT) / (WIDTH - LEFT - RIGHT)) * plot.chart.high;
    each(plot, (other) => show(other, step));
  };
  plot.element.addEventListener("pointermove", point);
  plot.element.addEventListener("pointerdown", point);
  plot.element.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") each(plot, clear);
  });
  plot.element.addEventListener("blur", () => each(plot, clear));
  plot.element.addEventListener("keydown", (event) => {
    const xs = steps(plot.chart), end = xs.length - 1;
    const now = plot.step === null ? end + 1 : nearest(xs, plot.step);
    const by = event.shiftKey ? 10 : 1;
    const next = {
      ArrowLeft: now - by, ArrowDown: now - by, ArrowRight: now + by, ArrowUp: now + by,
      PageUp: now - 10, PageDown: now + 10, Home: 0, End: end,
    }[event.key];
    if (event.key === "Escape") each(plot, clear);
    if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const step = xs[Math.min(Math.max(next, 0), end)];
    each(plot, (other) => show(other, step));
  });
}

document.getElementById("smoothing").addEventListener("change", (event) => {
  document.body.classList.toggle("raw-only", !event.target.checked);
});

for (const box of document.querySelectorAll("input.shown")) {
  box.addEventListener("change", () => {
    for (const part of document.querySelectorAll(`.${box.dataset.run}`)) {
      part.classList.toggle("off", !box.checked);
    }
  });
}
