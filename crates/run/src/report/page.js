"use strict";
// Curves, heat maps and the image viewer of a report. Names and prompts are only ever set as text.

const root = document.documentElement;
addEventListener("error", (event) => { root.dataset.error = event.message; });
document.addEventListener("securitypolicyviolation", (event) => { root.dataset.error = `refused: ${event.violatedDirective}`; });

const runs = JSON.parse(document.getElementById("data").textContent).runs;
const view = { hidden: new Set(), smooth: 0, log: false };
const HEIGHT = 220, LEFT = 56, RIGHT = 10, TOP = 8, BOTTOM = 34;
const DASHES = ["", "6 4", "2 4", "9 3 2 3"]; // beyond ten runs colours come again with another line

function make(space, name, attributes, children) {
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const element = (name, attributes = {}, ...children) => make(null, name, attributes, children);
const shape = (name, attributes = {}, ...children) => make("http://www.w3.org/2000/svg", name, attributes, children);
const swatch = (run) => element("span", { class: "swatch", "data-color": run % 10, "aria-hidden": "true" });

/** Five digits. */
function number(value) {
  if (value === null || value === undefined) return "not finite";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-4 || size >= 1e6) ? value.toExponential(3).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(5)));
}

/** About `count` round values between two numbers. */
function ticks(low, high, count, log) {
  if (log) {
    const found = [];
    for (let d = Math.floor(Math.log10(low)); d <= Math.log10(high); d++) for (const m of [1, 2, 5]) found.push(m * 10 ** d);
    const inside = found.filter((v) => v >= low && v <= high);
    const decades = inside.filter((v) => Math.abs(Math.log10(v) % 1) < 1e-9);
    return inside.length > count + 2 && decades.length > 1 ? decades : inside;
  }
  const power = 10 ** Math.floor(Math.log10((high - low) / count));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => (high - low) / s <= count) ?? 10 * power;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, i) => Number(((first + i) * step).toPrecision(10)));
}

/** Exponential mean without the pull to zero at its start; what is not finite is passed over. */
function smoothed(values, weight) {
  let sum = 0, mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

/** The place of the value nearest to `x` in an ascending list. */
function nearest(list, x) {
  let low = 0, high = list.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle] <= x) low = middle; else high = middle;
  }
  return Math.abs(list[high] - x) < Math.abs(list[low] - x) ? high : low;
}

/** A box beside the pointer: a heading, then lines that may have a run's colour. */
function readout(figure) {
  const box = element("div", { class: "readout", "aria-live": "polite", hidden: "" });
  figure.append(box);
  return {
    show(share, heading, lines) {
      box.replaceChildren(element("b", {}, heading), ...lines.map(([run, text]) => element("div", {}, ...(run === null ? [] : [swatch(run)]), text)));
      box.style.left = share < 0.5 ? `calc(${100 * share}% + 14px)` : "auto";
      box.style.right = share < 0.5 ? "auto" : `calc(${100 * (1 - share)}% + 14px)`;
      box.hidden = false;
    },
    hide() { box.hidden = true; },
  };
}

/** Pointer and arrow keys over a drawing: `at(share)` for the pointer, `move(by)` for keys, `leave()`. */
function listen(target, { at, move, leave }) {
  const share = (event) => {
    const box = target.getBoundingClientRect();
    at((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  target.addEventListener("pointermove", share);
  target.addEventListener("pointerdown", share);
  target.addEventListener("pointerleave", leave);
  target.addEventListener("blur", leave);
  target.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1], Home: [-1e9, 0], End: [1e9, 0] };
    if (event.key === "Escape") leave();
    else if (event.key in moves) { event.preventDefault(); move(...moves[event.key]); }
  });
}

/** The curves of one name. */
function chart(name) {
  const note = element("small");
  const picture = shape("svg", { role: "img", tabindex: 0, height: HEIGHT, "aria-label": `${name} over the steps; arrow keys tell values` });
  const figure = element("figure", { class: "chart" }, element("figcaption", {}, name, note), picture);
  const box = readout(figure);
  const over = shape("g");
  let lines = [], steps = [], place = 0, x, y, width;

  function draw() {
    width = Math.max(figure.clientWidth, 200);
    const shown = runs.map((run, i) => ({ run, i, curve: run.curves[name] })).filter((l) => l.curve && !view.hidden.has(l.i));
    lines = shown.map((line) => ({ ...line, mean: view.smooth > 0 ? smoothed(line.curve.y, view.smooth) : line.curve.y }));
    steps = [...new Set(lines.flatMap((l) => l.curve.x))].sort((a, b) => a - b);
    const values = lines.flatMap((l) => [...l.curve.y, l.curve.level, ...l.curve.errors.flatMap((e) => e.slice(1))]).filter((v) => v !== null);
    const lost = lines.reduce((n, l) => n + l.curve.y.filter((v) => v === null).length, 0);
    const log = view.log && values.every((v) => v > 0);
    note.textContent = [lost ? `${lost} not finite` : "", view.log && !log ? "linear: not all above 0" : ""].filter(Boolean).join("; ");
    picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    over.replaceChildren();
    if (!values.length) { picture.replaceChildren(shape("text", { x: LEFT, y: HEIGHT / 2 }, lines.length ? "no finite values" : "no run is shown")); return; }
    // not spread: a long run has more values than a call takes arguments
    let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    if (log) { low /= 1.05; high *= 1.05; } else { const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1e-3; low -= room; high += room; }
    const [first, last] = [steps[0], steps[steps.length - 1]];
    const map = (v) => log ? Math.log(v) : v;
    x = (v) => LEFT + (width - LEFT - RIGHT) * (last > first ? (v - first) / (last - first) : 0.5);
    y = (v) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (map(v) - map(low)) / (map(high) - map(low));
    picture.replaceChildren(...axes(low, high, first, last, log), ...lines.flatMap(beside), ...lines.flatMap(paths), over);
  }

  function axes(low, high, first, last, log) {
    const across = ticks(low, high, 5, log).flatMap((v) => [
      shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v) }),
      shape("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, number(v)),
    ]);
    const whole = last > first ? ticks(first, last, Math.max(3, Math.floor(width / 60)), false).filter(Number.isInteger) : [first];
    const along = whole.map((v) => shape("text", { x: x(v), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, String(v)));
    return [...across, ...along, shape("text", { x: (LEFT + width) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "step")];
  }

  /** The level of the base, the errors of changes from it, and the steps at which the panel drifts. */
  function beside(line) {
    const mark = (kind, place) => shape("line", { class: kind, "data-color": line.i % 10, ...place });
    const level = line.curve.level === null ? [] : [mark("level", { x1: LEFT, x2: width - RIGHT, y1: y(line.curve.level), y2: y(line.curve.level) })];
    const errors = line.curve.errors.map(([step, low, high]) => mark("error", { x1: x(step), x2: x(step), y1: y(low), y2: y(high) }));
    return [...level, ...errors, ...line.curve.drifts.map((step) => mark("drift", { x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM }))];
  }

  function paths(line) {
    const path = (values, kind) => {
      let d = "", open = false;
      values.forEach((v, k) => {
        if (v === null) { open = false; return; }
        d += `${open ? "L" : "M"}${x(line.curve.x[k]).toFixed(1)} ${y(v).toFixed(1)}${open ? "" : "h0"}`;
        open = true;
      });
      return shape("path", { d, class: kind, "data-color": line.i % 10, "stroke-dasharray": DASHES[Math.floor(line.i / 10) % DASHES.length] || undefined });
    };
    return view.smooth > 0 ? [path(line.curve.y, "raw"), path(line.mean, "mean")] : [path(line.curve.y, "mean")];
  }

  function tell(k) {
    if (!x || !steps.length) return;
    place = Math.min(Math.max(k, 0), steps.length - 1);
    const step = steps[place];
    const told = lines.map((line) => ({ ...line, k: nearest(line.curve.x, step) }));
    const dots = told.filter((l) => l.mean[l.k] !== null).map((l) => shape("circle", { cx: x(l.curve.x[l.k]), cy: y(l.mean[l.k]), r: 4, "data-color": l.i % 10 }));
    over.replaceChildren(shape("line", { class: "cross", x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM }), ...dots);
    box.show(x(step) / width, `step ${step}`, told.map((l) => {
      const [own, at] = [l.curve.y[l.k], l.curve.x[l.k]];
      const mean = view.smooth > 0 ? ` (smoothed ${number(l.mean[l.k])})` : "";
      return [l.i, `${runs.length > 1 ? `${l.run.name}: ` : ""}${number(own)}${mean}${at === step ? "" : ` at step ${at}`}`];
    }));
  }

  listen(picture, {
    at: (share) => {
      if (!steps.length) return;
      const [first, last] = [steps[0], steps[steps.length - 1]];
      tell(nearest(steps, first + (last - first) * (share * width - LEFT) / (width - LEFT - RIGHT)));
    },
    move: (by) => tell(place + by),
    leave: () => { box.hide(); over.replaceChildren(); },
  });
  return { figure, draw };
}

/** Dark blue, teal, green, yellow for 0 to 1; grey for what is not finite. */
function shade(value) {
  const stops = [[40, 30, 90], [40, 110, 142], [70, 185, 115], [250, 230, 50]];
  if (value === null || Number.isNaN(value)) return [140, 140, 140];
  const at = Math.min(Math.max(value, 0), 1) * 3, low = Math.min(Math.floor(at), 2);
  return stops[low].map((c, i) => c + (at - low) * (stops[low + 1][i] - c));
}

function painted(canvas, width, height, value) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) image.data.set([...shade(value(column, row)), 255], 4 * (row * width + column));
  context.putImageData(image, 0, 0);
}

/** The control of one run: updates across, active steps up, the last on top; `most` is the brightest. */
function heat(run, i, most) {
  const { x, rows, steps, of } = run.profile;
  const active = Math.max(...rows.map((row) => row.length));
  // a row with fewer numbers has fewer active steps, and the last is always the end
  const value = (column, fromEnd) => rows[column][rows[column].length - 1 - fromEnd] ?? null;
  const called = (fromEnd) => steps ? `step ${steps - fromEnd} of ${steps}` : fromEnd ? `${fromEnd} before the last` : "last step";
  const canvas = element("canvas", { role: "img", tabindex: 0, "aria-label": `control of ${run.name} over updates and steps; arrow keys tell values` });
  canvas.style.height = `${Math.min(Math.max(active * 16, 64), 240)}px`;
  painted(canvas, rows.length, active, (column, row) => row < rows[column].length ? (value(column, row) === null ? null : value(column, row) / most) : null);
  const shades = element("canvas", { "aria-hidden": "true" });
  painted(shades, 100, 1, (column) => column / 99);
  const some = rows.length < of ? element("small", {}, `every ${Math.ceil(of / rows.length)}th of ${of} updates`) : "";
  const figure = element("figure", { class: "chart" }, element("figcaption", {}, ...(runs.length > 1 ? [swatch(i)] : []), run.name, some),
    element("div", { class: "map" },
      element("div", { class: "rows" }, ...[0, active - 1].slice(0, active).map((k) => element("span", {}, steps ? String(steps - k) : k ? `-${k}` : "last"))), canvas,
      element("div", { class: "columns" }, element("span", {}, `update ${x[0]}`), element("span", {}, String(x[x.length - 1]))),
      element("div", { class: "shades" }, "0", shades, number(most))));
  const box = readout(figure);
  let column = 0, row = 0;
  const tell = (newColumn, newRow) => {
    column = Math.min(Math.max(newColumn, 0), rows.length - 1);
    row = Math.min(Math.max(newRow, 0), active - 1);
    const found = row < rows[column].length ? number(value(column, row)) : "not active";
    box.show((column + 0.5) / rows.length, `update ${x[column]}`, [[null, `${called(row)}: ${found}`]]);
  };
  listen(canvas, {
    at: (across, down) => tell(Math.floor(across * rows.length), Math.floor(down * active)),
    move: (by, up) => tell(column + by, row - up),
    leave: box.hide,
  });
  return { figure, draw() { figure.hidden = view.hidden.has(i); } };
}

function charts() {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))];
  const drawn = names.map(chart);
  const place = document.getElementById("charts");
  place.append(...drawn.map((c) => c.figure));
  if (!names.length) place.append(element("p", {}, "No curves: nothing was logged."));
  const profiles = runs.filter((run) => run.profile);
  const most = profiles.reduce((most, run) => run.profile.rows.reduce((m, row) => Math.max(m, ...row.map((v) => v ?? 0)), most), 0) || 1;
  const maps = runs.map((run, i) => run.profile && heat(run, i, most)).filter(Boolean);
  const below = document.getElementById("maps");
  below.append(...maps.map((m) => m.figure));
  if (!maps.length) below.append(element("p", {}, "No control was logged: methods without an adjoint have none."));
  return () => [...drawn, ...maps].forEach((c) => c.draw());
}

function controls(draw) {
  const smooth = document.getElementById("smooth"), log = document.getElementById("log");
  smooth.addEventListener("input", () => {
    view.smooth = Number(smooth.value);
    document.getElementById("smooth-value").textContent = smooth.value;
    draw();
  });
  log.addEventListener("change", () => { view.log = log.checked; draw(); });
  if (runs.length < 2) return;
  const buttons = runs.map((run, i) => {
    const button = element("button", { type: "button", "aria-pressed": "true" }, swatch(i), run.name);
    button.addEventListener("click", () => set(i, view.hidden.has(i)));
    return button;
  });
  const set = (i, shown) => {
    if (shown) view.hidden.delete(i); else view.hidden.add(i);
    buttons[i].setAttribute("aria-pressed", String(shown));
    draw();
  };
  const all = element("button", { type: "button" }, "all or none");
  all.addEventListener("click", () => { const shown = view.hidden.size > 0; runs.forEach((_, i) => set(i, shown)); });
  document.getElementById("legend").append(...buttons, ...(runs.length > 3 ? [all] : []));
}

/** A click on an image shows it large; arrow keys go along its strip. */
function viewer() {
  const dialog = document.getElementById("viewer"), [picture, caption] = dialog.querySelectorAll("img, p");
  let shots = [], place = 0;
  const show = (k) => {
    place = (k + shots.length) % shots.length;
    const image = shots[place].querySelector("img");
    picture.src = image.src;
    picture.alt = caption.textContent = image.alt;
  };
  document.querySelectorAll(".strip").forEach((strip) => strip.querySelectorAll(".shot").forEach((shot, k) => {
    shot.addEventListener("click", () => { shots = [...strip.querySelectorAll(".shot")]; show(k); dialog.showModal(); });
  }));
  dialog.addEventListener("click", (event) => {
    const move = event.target.dataset.move;
    if (event.target === dialog || move === "0") dialog.close();
    else if (move) show(place + Number(move));
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(place - 1);
    if (event.key === "ArrowRight") show(place + 1);
  });
}

const draw = charts();
controls(draw);
viewer();
draw();
let width = root.clientWidth;
new ResizeObserver(() => { if (root.clientWidth !== width) { width = root.clientWidth; draw(); } }).observe(root);
root.dataset.ready = "yes";
