// Plots of the page of a report, as SVG: curves and dots, and parallel coordinates, with hovering and
// zooming. Names are only ever set as text. Shares one scope with page.js, which follows.

const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows, kept = rows.filter((row) => !row.left_out).length;
const state = { x: data.axis, log: false, hidden: new Set() };
const PALETTE = ["#3b82d6", "#e0803a", "#2fa35e", "#cc5288", "#8f6bd6", "#a87f2e", "#1fa2aa",
  "#d6534b", "#7f8f30", "#8791a1"];
const charts = [];

// The best row is blue; of many, the colour tells the rank.
const colour = (row) => rows[row].left_out ? "var(--muted)"
  : kept <= PALETTE.length ? PALETTE[row] : `hsl(${215 - 190 * row / (kept - 1)} 65% 52%)`;
const title = (row, run) => [rows[row].name, run].filter(Boolean).join(", ");
const short = (x) => x === null ? "not finite"
  : x !== 0 && (Math.abs(x) >= 1e6 || Math.abs(x) < 1e-3) ? x.toExponential(2).replace(/\.?0+e/, "e")
  : String(+x.toPrecision(5));

function add(parent, tag, attributes = {}, text = null) {
  const svg = parent.namespaceURI === "http://www.w3.org/2000/svg" || tag === "svg";
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return parent.appendChild(made);
}

function light(row) {
  for (const svg of document.querySelectorAll("svg")) svg.classList.toggle("lit", row !== null);
  for (const part of document.querySelectorAll("[data-row]")) {
    part.classList.toggle(part.tagName === "TR" ? "lit" : "on", part.dataset.row === `${row}`);
  }
}

// ------------------------------------------------------------------------------------- axes

function ticks([low, high], count, log) {
  if (log) {
    const marks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
      for (const m of [1, 2, 5]) marks.push(m * 10 ** e);
    }
    const inside = marks.filter((x) => low <= x && x <= high);
    const tens = inside.filter((x) => Math.abs(Math.log10(x) % 1) < 1e-9);
    const apart = Math.ceil(tens.length / count); // decades from one mark to the next
    return tens.length > 2 ? tens.filter((_, i) => i % apart === 0) : inside;
  }
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
  const marks = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) marks.push(k * step);
  return marks;
}

const range = (values) => values.reduce(
  ([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]);

function widened([low, high], log) {
  if (!(low <= high)) return [0, 1];
  if (log) {
    const more = low === high ? 2 : (high / low) ** 0.04;
    return [low / more, high * more];
  }
  const room = 0.03 * (high - low) || Math.abs(high) / 20 || 0.5;
  return [low - room, high + room];
}

function scale([low, high], from, to, log) {
  const f = log ? Math.log : (x) => x, start = f(low), span = f(high) - start;
  return {
    to: (x) => from + (f(x) - start) / span * (to - from),
    from: (at) => {
      const x = start + (at - from) / (to - from) * span;
      return log ? Math.exp(x) : x;
    },
  };
}

// ------------------------------------------------------------------------------------ frame

// A figure that is drawn anew when its width changes: draw(svg, width, height) -> nearest(x, y),
// which returns {row, x, y, text} of what is there, or null.
function frame(parent, caption, draw, note = "") {
  const figure = add(parent, "figure");
  const head = add(figure, "figcaption", {}, caption);
  const svg = add(figure, "svg", { role: "img", "aria-label": caption });
  const tip = add(figure, "div", { class: "tip", hidden: "" });
  if (note) add(figure, "p", {}, note);
  let nearest = () => null, drawn = 0;
  const redraw = () => {
    const width = Math.round(svg.getBoundingClientRect().width);
    if (!width) return; // in a closed part of the page
    const height = Math.round(Math.min(Math.max(0.58 * width, 220), 380));
    drawn = width;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    nearest = draw(svg, width, height);
  };
  const place = (event) => {
    const box = svg.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const leave = () => {
    tip.hidden = true;
    svg.querySelector(".mark")?.remove();
    light(null);
  };
  svg.addEventListener("pointermove", (event) => {
    const hit = nearest(...place(event));
    leave();
    if (!hit) return;
    light(hit.row);
    add(svg, "circle", { class: "mark", cx: hit.x, cy: hit.y, r: 4, fill: colour(hit.row) });
    tip.textContent = hit.text;
    tip.hidden = false;
    const right = hit.x > drawn / 2;
    tip.style.left = right ? "auto" : `${hit.x + 12}px`;
    tip.style.right = right ? `${drawn - hit.x + 12}px` : "auto";
    tip.style.top = `${hit.y + svg.offsetTop + head.offsetHeight}px`;
  });
  svg.addEventListener("pointerleave", leave);
  new ResizeObserver(() => {
    if (Math.round(svg.getBoundingClientRect().width) !== drawn) redraw();
  }).observe(figure);
  charts.push(redraw);
  redraw();
  return { svg, head, redraw, place };
}

// ------------------------------------------------------------------------------------- plot

// make() -> {x: {label, log, names}, y: {label, log}, window, lines, bands, dots}: lines hold
// {row, run, points: [[x, y]], kind, tip}, bands {row, points: [[x, low, high]]}.
function plot(parent, caption, make, note) {
  let view = null, inner = null, full = false;

  function draw(svg, width, height) {
    const spec = make(), left = 58, right = 12, top = 8, bottom = 38;
    const shown = (part) => !state.hidden.has(part.row);
    const usable = ([x, y]) => x !== null && y !== null && (!spec.x.log || x > 0)
      && (!spec.y.log || y > 0);
    const lines = spec.lines.filter(shown);
    const points = lines.flatMap((line) => line.points.filter(usable));
    const all = range(points.map((point) => point[1]));
    if (view && (view.axis !== spec.x.label || (spec.y.log && view.y[0] <= 0))) view = null;
    let [low, high] = full || !spec.window ? widened(all, spec.y.log) : spec.window;
    if (spec.y.log && low <= 0) low = Math.min(all[0], high / 10);
    const spans = view || {
      x: widened(range(points.map((point) => point[0])), spec.x.log),
      y: low < high ? [low, high] : widened(all, spec.y.log),
    };
    const x = scale(spans.x, left, width - right, spec.x.log);
    const y = scale(spans.y, height - bottom, top, spec.y.log);
    inner = { axis: spec.x.label, x, y, left, top, width: width - left - right, height: height - top - bottom };

    const names = spec.x.names;
    const across = names ? names.map((_, i) => i).filter((i) => spans.x[0] <= i && i <= spans.x[1])
      : ticks(spans.x, Math.max(3, width / 90), spec.x.log);
    for (const at of across) {
      const px = x.to(at), words = names ? names[at] : short(at);
      add(svg, "line", { class: "grid-line", x1: px, x2: px, y1: top, y2: height - bottom });
      const text = add(svg, "text", { x: px, y: height - bottom + 15, "text-anchor": "middle" },
        words.length > 16 ? `${words.slice(0, 15)}…` : words);
      if (names && names.length * 75 > width) {
        text.setAttribute("transform", `rotate(-20 ${px} ${height - bottom + 15})`);
        text.setAttribute("text-anchor", "end");
      }
    }
    for (const at of ticks(spans.y, Math.max(3, height / 50), spec.y.log)) {
      const py = y.to(at);
      add(svg, "line", { class: "grid-line", x1: left, x2: width - right, y1: py, y2: py });
      add(svg, "text", { x: left - 6, y: py + 4, "text-anchor": "end" }, short(at));
    }
    add(svg, "text", { x: left + inner.width / 2, y: height - 6, "text-anchor": "middle" },
      spec.x.label);
    const id = `clip-${charts.length}-${Math.random().toString(36).slice(2)}`;
    const clip = add(add(svg, "defs"), "clipPath", { id });
    add(clip, "rect", { x: left, y: top, width: inner.width, height: inner.height });
    const inside = add(svg, "g", { "clip-path": `url(#${id})` });
    const at = (point) => `${x.to(point[0]).toFixed(1)} ${y.to(point[1]).toFixed(1)}`;

    for (const band of spec.bands.filter(shown)) {
      const known = band.points.filter((point) => usable(point) && usable([point[0], point[2]]));
      const around = [...known, ...known.toReversed().map((point) => [point[0], point[2]])];
      add(inside, "path", { class: "band of-row", "data-row": band.row, fill: colour(band.row),
        d: around.map((point, i) => `${i ? "L" : "M"}${at(point)}`).join("") });
    }
    for (const line of lines.toReversed()) { // the best on top
      let d = "", open = false;
      const known = line.points.filter(usable);
      const looks = { "data-row": line.row, class: `of-row ${line.kind}` };
      if (!spec.dots) {
        for (const point of line.points) {
          const fits = usable(point);
          if (fits) d += `${open ? "L" : "M"}${at(point)}`;
          open = fits;
        }
        add(inside, "path", { ...looks, class: `line ${looks.class}`, stroke: colour(line.row), d });
      }
      for (const point of spec.dots || known.length < 30 ? known : []) {
        add(inside, "circle", { ...looks, cx: x.to(point[0]), cy: y.to(point[1]),
          r: spec.dots || known.length === 1 ? 3.5 : 1.8, fill: colour(line.row) });
      }
      const last = known.at(-1);
      if (last && line.kind.includes("away")) { // a cross where it ends, or leaves the plot
        const px = x.to(last[0]);
        const py = Math.min(Math.max(y.to(last[1]), top + 5), height - bottom - 5);
        add(inside, "path", { class: "line cross of-row", "data-row": line.row,
          stroke: colour(line.row),
          d: `M${px - 4} ${py - 4}l8 8M${px - 4} ${py + 4}l8 -8` });
      }
    }
    add(svg, "rect", { class: "frame", x: left, y: top, width: inner.width,
      height: inner.height });

    return (px, py) => {
      let best = null, least = 30 ** 2;
      for (const line of lines) {
        for (const point of line.points.filter(usable)) {
          const cx = x.to(point[0]), cy = y.to(point[1]);
          if (cx < left - 1 || cx > width - right + 1 || cy < top - 1
            || cy > height - bottom + 1) continue;
          const distance = (cx - px) ** 2 + (cy - py) ** 2;
          if (distance < least) {
            least = distance;
            best = { row: line.row, x: cx, y: cy, text: line.tip(point) };
          }
        }
      }
      return best;
    };
  }

  const { svg, head, redraw, place } = frame(parent, caption, draw, note);
  const button = (label, action) => {
    add(head, "button", { type: "button" }, label).addEventListener("click", () => {
      action();
      redraw();
    });
  };
  button("reset", () => { view = null; full = false; });
  button("all values", () => { view = null; full = true; });
  svg.addEventListener("dblclick", () => { view = null; full = false; redraw(); });

  let start = null, brush = null;
  const span = (from, to, low, size) => {
    const limit = (v) => Math.min(Math.max(v, low), low + size);
    return [Math.min(limit(from), limit(to)), Math.max(limit(from), limit(to))];
  };
  svg.addEventListener("pointerdown", (event) => {
    if (event.button === 0) start = place(event);
  });
  const area = ([x, y]) => {
    let across = span(start[0], x, inner.left, inner.width);
    let down = span(start[1], y, inner.top, inner.height);
    // A flat drag zooms one axis.
    if (down[1] - down[0] < 8) down = [inner.top, inner.top + inner.height];
    if (across[1] - across[0] < 8) across = [inner.left, inner.left + inner.width];
    return [across, down];
  };
  svg.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [across, down] = area(place(event));
    brush?.remove();
    brush = add(svg, "rect", { class: "brush", x: across[0], y: down[0],
      width: across[1] - across[0], height: down[1] - down[0] });
  });
  window.addEventListener("pointerup", (event) => {
    if (!start) return;
    const end = place(event), [across, down] = area(end);
    const moved = Math.hypot(end[0] - start[0], end[1] - start[1]) > 8;
    start = null;
    brush?.remove();
    if (!moved) return;
    view = { axis: inner.axis, x: across.map(inner.x.from),
      y: [inner.y.from(down[1]), inner.y.from(down[0])] };
    redraw();
  });
}

// --------------------------------------------------------------------- parallel coordinates

function parallel(parent, caption, spec) {
  frame(parent, caption, (svg, width, height) => {
    const left = 30, top = 14, bottom = 40, axes = spec.axes, inside = height - top - bottom;
    const x = (i) => left + i * (width - left - 90) / (axes.length - 1);
    const y = (share) => top + (1 - share) * inside;
    const lines = spec.lines.map((heights, row) => ({ row, heights }))
      .filter((line) => !state.hidden.has(line.row));
    for (const { row, heights } of lines.toReversed()) {
      add(svg, "path", { class: "line of-row mean", "data-row": row, stroke: colour(row),
        d: heights.map((h, i) => `${i ? "L" : "M"}${x(i)} ${y(h)}`).join("") });
    }
    axes.forEach((axis, i) => {
      add(svg, "line", { class: "frame", x1: x(i), x2: x(i), y1: top, y2: top + inside });
      let last = Infinity; // ticks that would cover one another are left out
      for (const [share, words] of axis.ticks) {
        if (last - y(share) < 12) continue;
        last = y(share);
        add(svg, "text", { x: x(i) + 5, y: y(share) + 4 },
          words.length > 16 ? `${words.slice(0, 15)}…` : words);
      }
      const name = add(svg, "text", { x: x(i), y: height - (i % 2 ? 6 : 22),
        "text-anchor": i ? "middle" : "start" }, axis.key);
      if (i === axes.length - 1) name.setAttribute("text-anchor", "middle");
    });
    return (px, py) => {
      const i = Math.min(Math.max(Math.floor((px - left) / (x(1) - left)), 0), axes.length - 2);
      const share = (px - x(i)) / (x(i + 1) - x(i));
      let best = null, least = 20;
      for (const { row, heights } of lines) {
        const at = y(heights[i] + share * (heights[i + 1] - heights[i]));
        if (Math.abs(at - py) < least) {
          least = Math.abs(at - py);
          best = { row, x: px, y: at, text: rows[row].name };
        }
      }
      return best;
    };
  });
}
