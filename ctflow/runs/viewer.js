// The viewer of a report. Before it, the page defines CASES, each as ctflow/runs/viewer.py describes it.
"use strict";
let V = CASES[0];
const WORK = window.ctflowRun === V.run;  // the folder of all slices lies beside the page
const state = {
  case: 0, plane: 0, at: 0, a: 0, b: 0, map: "input", level: 40, width: 400, scale: 200, tool: "Move",
  blink: false, swap: false, zoom: 1, x: .5, y: .5, cursor: { row: 0, column: 0 }, mark: null, marking: false,
};
let turn = 0, measuring = 0, asked = 0, drag = null, scrolled = 0;
const $ = id => document.getElementById(id);
const all = css => [...document.querySelectorAll(css)];
const panels = ["A", "B", "C"].map(letter => (
  { letter, canvas: $("canvas" + letter), marks: $("marks" + letter), read: $("read" + letter) }));
const readable = canvas => canvas.getContext("2d", { willReadFrequently: true });
const limit = (value, low, high) => Math.max(low, Math.min(high, value));
const plane = () => V.planes[state.plane];
const shown = of => WORK ? [...Array(of.of).keys()] : of.places;
const place = () => shown(plane())[state.at];
const where = () => `${plane().unit} ${plane().first + place()}`;
const length = ({ from, to }) =>  // mm
  Math.hypot((to.row - from.row) * plane().high, (to.column - from.column) * plane().wide);

// Numbers of a picture, in its steps: those of the page, else from the folder of all slices.
const decoded = new Map();
function numbers(kind, image, of = state.plane, at = place()) {
  const { rows, columns, infix } = V.planes[of], name = `${V.files[kind][image]}-${infix}${at}`;
  if (decoded.size * rows * columns > 2 ** 28) decoded.clear();  // half a GiB
  if (!decoded.has(name))
    decoded.set(name, of && !V.held[name] ? upright(kind, image, of, at) : decode(name, rows, columns));
  return decoded.get(name);
}
// A PNG's left and right half are the high and low bytes of number + offset.
async function decode(name, rows, columns) {
  const picture = new Image(), context = readable(new OffscreenCanvas(2 * columns, rows));
  picture.src = "data:image/png;base64," + (V.held[name] || await fetched(name));
  await picture.decode();
  context.drawImage(picture, 0, 0);
  const [high, low] = [0, columns].map(x => context.getImageData(x, 0, columns, rows).data);
  return new Int16Array(rows * columns).map((_, i) => high[4 * i] * 256 + low[4 * i] - V.offset);
}
async function fetched(name) {
  const script = document.createElement("script");
  script.src = `viewer/${name}.js`;
  document.head.append(script);
  await new Promise(ended => { script.onload = script.onerror = ended; });
  script.remove();
  const picture = window.ctflowPicture;
  window.ctflowPicture = null;
  if (!picture) throw new Error(`viewer/${name}.js is missing or damaged; copy the folder viewer/ anew`);
  return picture;
}
// A coronal or sagittal plane out of all axial slices, head up.
async function upright(kind, image, of, at) {
  const { columns: across } = V.planes[0], { rows, columns } = V.planes[of], { rising } = V;
  const stack = await Promise.all([...Array(rows).keys()].map(k => numbers(kind, image, 0, k)));
  if (rising) stack.reverse();
  const [by, start] = of === 1 ? [1, at * across] : [across, at], row = i => stack[Math.floor(i / columns)];
  return new Int16Array(rows * columns).map((_, i) => row(i)[start + i % columns * by]);
}

// What C can show: differences of A, what samples of A say, or of a method that drew some, and the support.
function maps() {
  const { spreads } = V.files, of = spreads[state.a] ? state.a : spreads.findIndex(Boolean);
  return {
    input: () => difference(0),
    ...state.b && { other: () => difference(state.b) },
    ...spreads[of] && { sd: () => spread(of) },
    ...V.half_widths[of] && { outside: () => outside(of) },
    ...V.support && !state.plane && { support },
  };
}
async function difference(other) {
  const [x, y] = await Promise.all([state.a, other].map(image => numbers("images", image)));
  const name = `${V.names[state.a]} minus ${V.names[other]}, HU`, high = state.scale;
  const stops = ["#2166ac", "#f7f7f7", "#b2182b"], number = i => x[i] - y[i];
  return { name, stops, low: -high, high, number, value: i => number(i) + " HU" };
}
async function spread(of) {
  const sd = await numbers("spreads", of), name = `${V.names[of]}, ${V.meanings[of]}, HU`;
  const stops = ["#000004", "#51127c", "#b73779", "#fc8961", "#fcfdbf"], hu = i => sd[i] * V.sd_step;
  return { name, stops, low: 0, high: state.scale / 2, number: hu, value: i => hu(i).toFixed(1) + " HU" };
}
async function support() {
  const { place, step } = V.support, share = await numbers("support", 0, 0, place);
  const name = `what the data determine, slice ${plane().first + place}; 0: the prior alone`;
  const stops = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"], of = i => step * share[i];
  return { name, stops, low: 0, high: 1, number: of, value: i => of(i).toFixed(2) };
}
async function outside(of) {
  const wanted = [["images", of], ["images", 0], ["spreads", of]];
  const [x, truth, sd] = await Promise.all(wanted.map(([kind, image]) => numbers(kind, image)));
  const half = i => V.half_widths[of] * (sd[i] * V.sd_step + V.floor), shade = grey(x);
  const missed = i => Math.abs(x[i] - truth[i]) > half(i);
  const name = `${V.names[of]}; red: ${V.names[0]} outside its samples’ nominal 90 % interval`;
  const colour = i => missed(i) ? 225 + (shade(i) >> 2 & 0x3f3f00) : shade(i);
  return { name, colour, value: i => missed(i) ? "outside" : "inside" };
}

// Painting; a colour is red + 256 green + 65536 blue.
const grey = values => i =>
  0x10101 * limit(Math.round(255 * ((values[i] - state.level) / Math.max(1, state.width) + .5)), 0, 255);
function shaded({ stops, low, high, number }) {
  const context = readable($("bar")), gradient = context.createLinearGradient(0, 0, 256, 0);
  stops.forEach((stop, k) => gradient.addColorStop(k / (stops.length - 1), stop));
  context.fillStyle = gradient;
  context.fillRect(0, 0, 256, 1);
  const shades = new Uint32Array(context.getImageData(0, 0, 256, 1).data.buffer);
  [$("low").textContent, $("high").textContent] = [low, high];
  return i => shades[Math.round(255 * limit((number(i) - low) / (high - low), 0, 1))];
}
function paint(panel, name, colour, value) {
  const { rows, columns } = plane(), { letter, canvas } = panel;
  const picture = new ImageData(columns, rows), pixels = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colour(i) | 0xff000000;
  Object.assign(canvas, { width: columns, height: rows });
  canvas.getContext("2d").putImageData(picture, 0, 0);
  panel.value = value;
  $("name" + letter).textContent = name;
}
async function draw() {
  const mine = ++turn, { a, b, swap } = state, found = maps(), left = swap ? b : a;
  if (!found[state.map]) state.map = "input";
  label(found);
  if (place() === undefined) return;
  const wanted = [numbers("images", left), numbers("images", b), found[state.map]()];
  const [x, y, map] = await Promise.all(wanted);
  if (mine !== turn) return;
  paint(panels[0], V.names[left], grey(x), i => x[i] + " HU");
  paint(panels[1], V.names[b], grey(y), i => y[i] + " HU");
  paint(panels[2], map.name, map.colour || shaded(map), map.value);
  $("scale").hidden = !map.stops;
  $("where").textContent = `${state.at + 1} of ${shown(plane()).length} · ${where()} of ${V.whole}`;
  show();
  measure();
  $("frameA").ariaBusy = `${asked > 0}`;
}
function redraw() {
  $("frameA").ariaBusy = "true";
  asked ||= requestAnimationFrame(() => {
    asked = 0;
    draw().catch(error => Object.assign($("trouble"), { textContent: error.message, hidden: false }));
  });
}
// What the controls offer and say; a number that is being typed stays as it is.
function label(map) {
  const { images } = V.files, number = shown(plane()).length;
  const offered = { a: images, b: images, map, plane: V.planes.map(of => shown(of).length) };
  const chosen = { ...state, window: `${state.level} ${state.width}` };
  for (const button of all("button[data-key]")) {
    const { key, value } = button.dataset;
    button.hidden = key in offered && !offered[key][value];
    button.ariaPressed = String(chosen[key]) === value;
  }
  $("blink").ariaPressed = state.blink;
  for (const row of all("[data-case]")) row.ariaCurrent = +row.dataset.case === state.case;
  Object.assign($("slice"), { max: number - 1, ariaValueText: where() });
  for (const field of all("select, input:not([type=number]:focus)")) field.value = state[field.dataset.key];
  $("holds").textContent = V.holds[+WORK];
  $("viewer").classList.toggle("bare", !number);
}
// Where the pictures lie in their panels, what is drawn over them, and what is under the crosshair.
function show() {
  const { rows, columns, high, wide } = plane(), { zoom, x, y, mark, cursor: { row, column } } = state;
  const gap = columns / zoom / 50, [cx, cy] = [column + .5, row + .5];
  const upright = `M${cx} 0V${cy - gap}M${cx} ${cy + gap}V${rows}`;
  const across = `M0 ${cy}H${cx - gap}M${cx + gap} ${cy}H${columns}`;
  const pixels = zoom * 150 < columns ? "auto" : "pixelated";  // large ones are seen as they are
  const css = { zoom, x, y, aspect: columns * wide / (rows * high), pixels };
  for (const key in css) $("viewer").style.setProperty("--" + key, css[key]);
  for (const { letter, marks, read, value } of panels) {
    marks.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    marks.children[0].setAttribute("d", upright + across);
    marks.children[1].setAttribute("d", mark ? outline(mark) : "");
    const said = letter === "A" ? `row ${row}, column ${column}: ` : "";
    if (value) read.textContent = said + value(row * columns + column);
  }
}

// What is measured: a region, or a profile along a line.
function outline({ kind, from, to }) {
  const x = Math.min(from.column, to.column), y = Math.min(from.row, to.row);
  const across = Math.abs(to.column - from.column) + 1, down = Math.abs(to.row - from.row) + 1;
  if (kind === "Rectangle") return `M${x} ${y}h${across}v${down}h${-across}z`;
  if (kind === "Line") return `M${from.column + .5} ${from.row + .5}L${to.column + .5} ${to.row + .5}`;
  const r = length({ from, to }), rx = r / plane().wide, ry = r / plane().high, half = `a${rx} ${ry} 0 0 0`;
  return `M${from.column + .5 - rx} ${from.row + .5}${half} ${2 * rx} 0${half} ${-2 * rx} 0`;
}
// Pixels of a region: its corners included; those whose centres lie in the circle.
function pixels({ kind, from, to }) {
  const { rows, columns } = plane(), r = length({ from, to }) + 1e-9;
  return [...Array(rows * columns).keys()].filter(i => {
    const row = Math.floor(i / columns), column = i % columns;
    if (kind === "Circle") return length({ from, to: { row, column } }) <= r;
    return (row - from.row) * (row - to.row) <= 0 && (column - from.column) * (column - to.column) <= 0;
  });
}
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
// Values along a line at steps of a pixel at most; at every step its row or its column is a whole number.
function profile(values, { from, to }) {
  const { columns } = plane(), down = to.row - from.row, right = to.column - from.column;
  const n = Math.max(1, Math.abs(down), Math.abs(right));
  return Array.from({ length: n + 1 }, (_, k) => {
    const y = from.row + down * k / n, x = from.column + right * k / n, share = y % 1 + x % 1;
    const at = rounded => values[rounded(y) * columns + rounded(x)];
    return (1 - share) * at(Math.floor) + share * at(Math.ceil);
  });
}
async function measure() {
  const mine = ++measuring, { mark } = state, along = mark?.kind === "Line";
  const read = kind => Promise.all(V.files[kind].map((file, image) => file && mark && numbers(kind, image)));
  const [images, spreads] = await Promise.all([read("images"), read("spreads")]);
  if (mine !== measuring) return;
  if (along) plot(images.map(values => values && profile(values, mark)), length(mark));
  else if (mark) tabulate(pixels(mark), images, spreads);
  $("profiled").hidden = !along;
  $("measured").hidden = !mark || along;
}
function tabulate(at, images, spreads) {
  const means = images.map(values => values && mean(at.map(i => values[i])));
  const area = (at.length * plane().high * plane().wide / 100).toFixed(2), { kind } = state.mark;
  $("region").textContent = `${kind} of ${at.length} pixels, ${area} cm², ${where()}`;
  images.forEach((values, k) => {
    const { cells } = Object.assign($("regions").rows[k], { hidden: !values });
    const sd = values && Math.sqrt(mean(at.map(i => (values[i] - means[k]) ** 2)));
    const spread = spreads[k] && V.sd_step * mean(at.map(i => spreads[k][i]));
    [means[k], sd, k ? means[k] - means[0] : "", spread].forEach((value, column) =>
      cells[column + 1]?.replaceChildren(value === "" ? "–" : value.toFixed(1)));
  });
}

// Controls: what has a key of the state sets it to its value.
function choose(key, value) {
  state[key] = value;
  if (key === "window") setWindow(...value.split(" "));
  if (key === "case") {
    V = CASES[value];
    Object.assign(state, { plane: 0, a: V.main, b: 0 });
  }
  if (key === "case" || key === "plane") {
    const { rows, columns } = plane(), cursor = { row: rows / 2, column: columns / 2 };
    for (const panel of panels) panel.value = null;
    change({ at: shown(plane()).length >> 1, cursor, zoom: 1, mark: null, marking: false });
  }
  redraw();
}
function cycle(key) {
  const offered = all(`button[data-key=${key}]:not([hidden])`);
  offered[(offered.findIndex(button => button.ariaPressed === "true") + 1) % offered.length].click();
}
function setWindow(level, width) {
  Object.assign(state, { level: Math.round(level), width: Math.max(1, Math.round(width)) });
  redraw();
}
const step = by => choose("at", limit(state.at + by, 0, shown(plane()).length - 1));
// Moves crosshair, view or mark; the crosshair stays in sight, and an end that is being drawn at it.
function change(what) {
  const before = state.mark, { rows, columns } = plane(), { cursor, zoom } = Object.assign(state, what);
  const row = limit(Math.floor(cursor.row), 0, rows - 1), reach = .5 / zoom;
  const column = limit(Math.floor(cursor.column), 0, columns - 1);
  const seen = (at, cross) => limit(limit(at, cross - reach, cross + reach), reach, 1 - reach);
  state.cursor = { row, column };
  state.x = seen(state.x, (column + .5) / columns);
  state.y = seen(state.y, (row + .5) / rows);
  if (state.marking) state.mark = { ...state.mark, to: state.cursor };
  show();
  if (state.mark !== before) measure();
}
function zoom(factor) {  // about the crosshair, which is under the mouse
  const { rows, columns } = plane(), { zoom: before, cursor: { row, column }, x, y } = state;
  const after = limit(before * factor, 1, 32), moved = (at, cross) => cross + (at - cross) * before / after;
  change({ zoom: after, x: moved(x, (column + .5) / columns), y: moved(y, (row + .5) / rows) });
}
const begin = () => change({ marking: true, mark: { kind: state.tool, from: state.cursor } });
setInterval(() => {  // 1 Hz, below the 3 Hz of WCAG 2.3.1
  const swap = state.blink && !state.swap;
  if (swap !== state.swap) choose("swap", swap);
}, 500);

// Mouse, pen and touch on a panel.
const POINTER = {
  pointerdown(e) {
    const moves = e.button === 1 || e.shiftKey || state.tool === "Move";
    const kind = e.button === 2 || e.altKey || e.ctrlKey ? "window" : moves ? "move" : "mark";
    POINTER.pointermove(e);
    drag = { ...state, e, kind };
    if (kind === "mark") begin();
    e.target.setPointerCapture(e.pointerId);
  },
  pointermove(e) {
    const { offsetWidth: width, offsetHeight: height } = e.target, { rows, columns } = plane();
    const dx = e.clientX - drag?.e.clientX, dy = e.clientY - drag?.e.clientY;
    if (drag?.kind === "window") setWindow(drag.level + 2 * dy, drag.width + 2 * dx);
    else if (drag?.kind === "move") change({ x: drag.x - dx / width, y: drag.y - dy / height });
    else change({ cursor: { row: e.offsetY / height * rows, column: e.offsetX / width * columns } });
  },
  lostpointercapture() {
    drag = null;
    state.marking = false;
    document.activeElement.blur();  // arrow keys go on scrolling slices
  },
  wheel(e) {
    e.preventDefault();
    scrolled += e.deltaY * (e.deltaMode ? 40 : 1);  // a notch is 100 pixels; touchpads send many small ones
    if (e.ctrlKey) zoom(2 ** (-e.deltaY / 200));
    else if (Math.abs(scrolled) >= 40) {
      step(Math.sign(scrolled));
      scrolled = 0;
    }
  },
  contextmenu: e => e.preventDefault(),
};
for (const { canvas } of panels)
  for (const name in POINTER) canvas.addEventListener(name, POINTER[name], { passive: false });

const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const PRESSED = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), PageUp: () => step(-1), PageDown: () => step(1),
  p: () => cycle("plane"), w: () => cycle("window"), d: () => cycle("scale"), m: () => cycle("map"),
  t: () => cycle("tool"), b: () => choose("blink", !state.blink),
  Escape: () => change({ mark: null, marking: false }),
  "+": () => zoom(1.25), "-": () => zoom(.8), 0: () => zoom(0), s: () => save("png"), v: () => save("svg"),
};
document.onkeydown = e => {
  const { target, key } = e, focused = target.matches(".frame"), digit = /^Digit(\d)$/.exec(e.code)?.[1] - 1;
  if (target !== document.body && !$("viewer").contains(target) || e.ctrlKey || e.metaKey || e.altKey) return;
  if (target.matches("input[type=number], select") || target.matches("input") && key in ARROWS) return;
  if (focused && ARROWS[key]) {
    const { row, column } = state.cursor, [down, right] = ARROWS[key].map(by => by * (e.shiftKey ? 10 : 1));
    change({ cursor: { row: row + down, column: column + right } });
    $("spoken").textContent = panels.map(({ letter, read }) => `${letter}: ${read.textContent}`).join("; ");
  } else if (focused && (key === "Enter" || key === " ")) {
    if (state.marking) state.marking = false;
    else if (state.tool !== "Move") begin();
  } else if (V.files.images[digit]) choose(e.shiftKey ? "b" : "a", digit);
  else if (PRESSED[key] && (focused || !key.startsWith("Page"))) PRESSED[key]();
  else return;
  e.preventDefault();
};
document.onclick = ({ target }) => {
  const { key, value, press } = target.closest("button, a")?.dataset || {};
  if (key) choose(key, isNaN(value) ? value : +value);
  if (press) PRESSED[press]();
};
document.oninput = ({ target }) => choose(target.dataset.key, +target.value);
choose("case", 0);
