// The page of a report: its rows, which can be hidden, and its plots, from the numbers in the page
// (common/reports/page.py). Follows plot.js, in one scope.

for (const line of document.querySelectorAll("tr[data-row]")) {
  const row = +line.dataset.row;
  line.firstChild.prepend(Object.assign(document.createElement("span"), { className: "swatch" }));
  line.firstChild.firstChild.style.background = colour(row);
  line.addEventListener("pointerenter", () => light(row));
  line.addEventListener("pointerleave", () => light(null));
  line.addEventListener("click", () => {
    if (!state.hidden.delete(row)) state.hidden.add(row);
    line.classList.toggle("hidden", state.hidden.has(row));
    for (const draw of charts) draw();
  });
}

const root = document.getElementById("plots");

function curves(parent, chart) {
  const away = new Set(chart.away.map((end) => `${end.row} ${end.run}`));
  const banded = new Set(chart.bands.map((band) => band.row));
  const kind = (line) => [
    banded.has(line.row) ? "thin" : "",
    rows[line.row].left_out || away.has(`${line.row} ${line.run}`) ? "away" : "",
  ].join(" ");
  const note = chart.away.length ? `off this axis: ${chart.away.map((end) =>
    `${title(end.row, end.run)} (ends ${end.end === null ? "" : "at "}${short(end.end)})`,
  ).join("; ")}` : "";
  plot(parent, chart.key, () => {
    const at = (row, point) => state.x === "steps" ? point[0] : state.x === "minutes" ? point[1]
      : rows[row].epoch ? point[0] / rows[row].epoch : null;
    const words = (line, point) => `${title(line.row, line.run)}\n${short(point[1])} at `
      + `${short(point[0])} ${state.x}`;
    const lines = chart.lines.map((line) => ({
      ...line, kind: kind(line), tip: (point) => words(line, point),
      points: line.points.map((point) => [at(line.row, point), point[2]]),
    }));
    const means = chart.bands.map((band) => ({
      row: band.row, kind: "mean",
      tip: (point) => words({ row: band.row, run: "mean" }, point),
      points: band.points.map((point) => [at(band.row, point), point[2]]),
    }));
    const bands = chart.bands.map((band) => ({
      row: band.row, points: band.points.map((p) => [at(band.row, p), p[3], p[4]]),
    }));
    return { x: { label: state.x }, y: { log: state.log }, window: chart.window, bands,
      lines: [...means, ...lines] };
  }, note);
}

add(root, "h2", {}, "Curves");
const controls = add(root, "div", { class: "controls" });
const axis = add(add(controls, "label", {}, "x axis "), "select");
for (const name of data.axes) {
  const option = add(axis, "option", {}, name);
  option.selected = name === state.x;
}
axis.addEventListener("change", () => {
  state.x = axis.value;
  for (const draw of charts) draw();
});
const log = add(add(controls, "label", {}, "logarithmic "), "input", { type: "checkbox" });
log.addEventListener("change", () => {
  state.log = log.checked;
  for (const draw of charts) draw();
});
add(controls, "small", {}, "a thick line is the mean of several runs, its band one standard "
  + "deviation; drag to zoom, double-click to go back; click a row of the table to hide it");
const open = add(root, "div", { class: "grid" });
for (const chart of data.curves.slice(0, data.first)) curves(open, chart);
if (data.curves.length > data.first) {
  const more = add(root, "details");
  add(more, "summary", {}, `${data.curves.length - data.first} more`);
  const grid = add(more, "div", { class: "grid" });
  for (const chart of data.curves.slice(data.first)) curves(grid, chart);
}

if (data.parallel || data.dots.length) {
  add(root, "h2", {}, "Hyperparameters");
  const grid = add(root, "div", { class: "grid" });
  for (const panel of data.dots) {
    plot(grid, `${panel.metric} against ${panel.key}`, () => ({
      x: { label: panel.key, log: panel.log, names: panel.names }, y: { log: state.log },
      window: panel.window, bands: [], dots: true,
      lines: panel.points.map((point) => ({
        row: point.row, kind: point.away ? "away" : "", points: [point.at],
        tip: ([at, value]) => `${title(point.row, point.run)}\n${short(value)}`,
      })),
    }));
  }
  if (data.parallel) parallel(grid, "parallel coordinates, a line for each row", data.parallel);
}
if (data.reliability.length) {
  add(root, "h2", {}, "Reliability of the best row's first run");
  const grid = add(root, "div", { class: "grid" });
  for (const { name, bins } of data.reliability) {
    plot(grid, `${name}: accuracy against confidence`, () => ({
      x: { label: "confidence" }, y: {}, window: [0, 1], bands: [],
      lines: [
        { row: 0, kind: "", points: bins.map((bin) => [bin[1], bin[2]]),
          tip: ([x]) => {
            const [count, confidence, accuracy] = bins.find((bin) => bin[1] === x);
            return `${count} predictions\nconfidence ${short(confidence)}\n`
              + `accuracy ${short(accuracy)}`;
          } },
        { row: 0, kind: "away", points: [[0, 0], [1, 1]], tip: () => "perfectly calibrated" },
      ],
    }));
  }
}
