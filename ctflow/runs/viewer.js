// The viewer of a run's report. The page defines V, what ctflow/runs/viewer.py writes, before this script.
"use strict";
const WINDOWS = [["Soft tissue", 40, 400], ["Lung", -600, 1500], ["Bone", 300, 1500]], SCALES = [50, 200, 500];
const TOOLS = ["Move", "Rectangle", "Circle", "Line"], LETTERS = ["A", "B", "C"];
const RAMPS = {
  difference: ["#2166ac", "#f7f7f7", "#b2182b"],
  sd: ["#000004", "#51127c", "#b73779", "#fc8961", "#fcfdbf"],
  support: ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"],
};
const WORK = window.ctflowRun === V.run;  // the folder of all slices lies beside the page
const KEPT = Math.max(256, 2 ** 28 / (V.planes[0].rows * V.planes[0].columns));  // decoded pictures, half a GiB
const $ = id => document.getElementById(id);
const limit = (value, low, high) => Math.max(low, Math.min(high, value));
const next = (list, at) => (at + 1) % list.length;

const state = {
  plane: 0, at: 0, a: V.main, b: 0, map: "input", level: 40, width: 400, scale: 200, blink: false, swap: false,
  zoom: 1, x: .5, y: .5, tool: 0, mark: null, fixed: true, cursor: { row: 0, column: 0 },
};
let turn = 0, measuring = 0, asked = 0, timer = 0, drag = null, scrolled = 0;
const P = () => V.planes[state.plane];
const places = () => WORK ? [...Array(P().of).keys()] : P().places;
const place = () => places()[state.at];

// Numbers of a picture, in its steps: those of the page, else from the folder of all slices.
const decoded = new Map(), awaited = new Map();
window.ctflowPicture = (key, text) => awaited.get(key)(text);
function numbers(kind, image, plane = state.plane, at = place()) {
  const key = [kind, image, plane, at].join("-");
  const found = decoded.get(key) || made(kind, image, plane, at);
  decoded.delete(key); decoded.set(key, found);  // the last is the latest used
  if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
  return found;
}
function made(kind, image, plane, at) {
  const { places, rows, columns, [kind]: held } = V.planes[plane], k = places.indexOf(at);
  if (k >= 0) return decode(held[image][k], rows, columns);
  if (plane) return upright(kind, image, plane, at);
  return fetched(`${kind}-${image}-${at}`).then(text => decode(text, rows, columns));
}
function fetched(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    awaited.set(name, resolve);
    script.src = `viewer/${name}.js`;
    script.onload = () => (script.remove(), reject(new Error(`viewer/${name}.js is damaged; copy the folder anew`)));
    script.onerror = () => reject(new Error(`the folder viewer/ beside this page lacks ${name}.js; copy it anew`));
    document.head.append(script);
  });
}
// A PNG's left and right half are the high and low bytes of number + offset.
async function decode(base64, rows, columns) {
  const picture = new Image();
  picture.src = "data:image/png;base64," + base64;
  await picture.decode();
  const canvas = new OffscreenCanvas(2 * columns, rows), context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const [high, low] = [0, columns].map(x => context.getImageData(x, 0, columns, rows).data);
  const values = new Int16Array(rows * columns);
  for (let i = 0; i < values.length; i++) values[i] = high[4 * i] * 256 + low[4 * i] - V.offset;
  return values;
}
// A coronal or sagittal plane out of all axial slices, head up.
async function upright(kind, image, plane, at) {
  const { of, columns: across } = V.planes[0], { columns } = V.planes[plane], values = new Int16Array(of * columns);
  const stack = await Promise.all([...Array(of).keys()].map(k => numbers(kind, image, 0, k)));
  stack.forEach((slice, k) => {
    const row = (V.rising ? of - 1 - k : k) * columns;
    for (let i = 0; i < columns; i++) values[row + i] = slice[plane === 1 ? at * across + i : i * across + at];
  });
  return values;
}
const drawnBy = image => V.planes[0].spreads[image].length > 0;
const sampled = () => drawnBy(state.a) ? state.a : V.names.findIndex((_, image) => drawnBy(image));

// What panel C can show: differences of A, what samples of A say, or of a method that drew some, and the support.
function maps() {
  const of = sampled(), found = { input: `A − ${V.names[0]}` };
  if (state.b) found.other = "A − B";
  if (of >= 0) found.sd = `SD of ${V.names[of]}`;
  if (V.half_widths[of]) found.outside = "Outside 90 %";
  if (V.support && !state.plane) found.support = "Support";
  return found;
}
const mapKey = () => state.map in maps() ? state.map : "input";
const mapped = {
  input: () => difference(0), other: () => difference(state.b),
  async sd() {
    const of = sampled(), sd = await numbers("spreads", of), unit = V.steps.spreads, most = state.scale / 2;
    const hu = i => (sd[i] * unit).toFixed(1) + " HU";
    return ramp("sd", `${V.names[of]}, ${V.meanings[of]}, HU`, ["0", most + "+"], i => sd[i] * unit / most, hu);
  },
  async outside() {
    const of = sampled(), most = V.half_widths[of];
    const [x, truth, sd] = await Promise.all([numbers("images", of), numbers("images", 0), numbers("spreads", of)]);
    const outside = i => Math.abs(x[i] - truth[i]) > most * (sd[i] * V.steps.spreads + V.floor), base = grey(x);
    const colour = (i, p, j) => { base(i, p, j); if (outside(i)) [p[j], p[j + 1], p[j + 2]] = [225, p[j] / 4, p[j] / 4]; };
    const name = `${V.names[of]}; red: ${V.names[0]} outside its samples’ nominal 90 % interval`;
    return { name, colour, value: i => outside(i) ? "outside" : "inside" };
  },
  async support() {
    const { rows, columns, first } = P(), share = await decode(V.support.picture, rows, columns), unit = V.steps.support;
    const name = `what the data determine, slice ${first + V.support.place}`, ends = ["0, the prior", "1, the data"];
    return ramp("support", name, ends, i => share[i] * unit, i => (share[i] * unit).toFixed(2));
  },
};
async function difference(other) {
  const [x, y] = await Promise.all([numbers("images", state.a), numbers("images", other)]), { scale } = state;
  const name = `${V.names[state.a]} minus ${V.names[other]}, HU`, ends = [`−${scale}`, `+${scale}`];
  return ramp("difference", name, ends, i => (x[i] - y[i]) / scale / 2 + .5, i => x[i] - y[i] + " HU");
}

// Painting: numbers to a picture of their size, then that picture into the panel by zoom and place.
const grey = values => (i, p, j) => {
  p[j] = p[j + 1] = p[j + 2] = 255 * (values[i] - state.level + state.width / 2) / state.width;  // clamped by the array
};
function ramp(colours, name, ends, share, value) {
  const stops = RAMPS[colours].map(text => [1, 3, 5].map(k => parseInt(text.slice(k, k + 2), 16)));
  const last = stops.length - 1;
  const shades = Array.from({ length: 256 }, (_, k) => {
    const at = k / 255 * last, s = Math.min(last - 1, Math.floor(at));
    return stops[s].map((value, c) => value + (at - s) * (stops[s + 1][c] - value));
  }).flat();
  const colour = (i, p, j) => {
    const k = 3 * Math.round(255 * limit(share(i), 0, 1));
    p[j] = shades[k]; p[j + 1] = shades[k + 1]; p[j + 2] = shades[k + 2];
  };
  return { ramp: colours, name, ends, colour, value };
}
const panels = LETTERS.map(letter =>
  ({ letter, frame: $("frame" + letter), canvas: $("canvas" + letter), marks: $("marks" + letter) }));
function paint(panel, colour, value) {
  const { rows, columns } = P(), picture = new ImageData(columns, rows), p = picture.data;
  for (let i = 0; i < rows * columns; i++) { colour(i, p, 4 * i); p[4 * i + 3] = 255; }
  Object.assign(panel, { value, source: new OffscreenCanvas(columns, rows) });
  panel.source.getContext("2d").putImageData(picture, 0, 0);
}
// Where the image lies in a panel of some width: sides of a pixel, and the corner of the first.
function view(width) {
  const { rows, columns, high, wide } = P(), height = width * rows * high / (columns * wide);
  const w = width / columns * state.zoom, h = height / rows * state.zoom;
  return { width, height, w, h, left: width / 2 - state.x * columns * w, top: height / 2 - state.y * rows * h };
}
function show() {
  const { rows, columns, high, wide } = P(), dense = window.devicePixelRatio || 1;
  for (const { canvas, frame, source } of panels) {
    frame.style.aspectRatio = `${columns * wide} / ${rows * high}`;
    const { width, height, w, h, left, top } = view(Math.max(1, Math.round(frame.clientWidth * dense)));
    Object.assign(canvas, { width, height: Math.max(1, Math.round(height)) });
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = Math.max(w, h) < 3 * dense;  // single pixels are seen as they are
    context.imageSmoothingQuality = "high";
    if (source) context.drawImage(source, left, top, columns * w, rows * h);
  }
  mark();
}
async function draw() {
  const mine = ++turn;
  try {
    const [x, y, map] = await Promise.all([numbers("images", state.a), numbers("images", state.b), mapped[mapKey()]()]);
    if (mine !== turn) return;
    const hu = values => i => values[i] + " HU", left = state.swap ? y : x;
    paint(panels[0], grey(left), hu(left)); paint(panels[1], grey(y), hu(y)); paint(panels[2], map.colour, map.value);
    label(map); show(); measure(); prepare();
    panels[0].frame.ariaBusy = `${asked > 0}`;
  } catch (error) {
    Object.assign($("trouble"), { textContent: error.message, hidden: false });
  }
}
// The slices before and after, so that scrolling finds them.
function prepare() {
  for (const at of [state.at - 1, state.at + 1].filter(at => !state.plane && places()[at] !== undefined))
    for (const image of [state.a, state.b]) numbers("images", image, 0, places()[at]).catch(() => null);
}
function label(map) {
  const name = V.names[state.swap ? state.b : state.a], where = `${P().unit} ${P().first + place()}`;
  $("nameA").textContent = name; $("nameB").textContent = V.names[state.b]; $("nameC").textContent = map.name;
  for (const { letter, frame } of panels)
    frame.setAttribute("aria-label", `Picture ${letter}: ${$("name" + letter).textContent}, ${where}`);
  $("where").textContent = `${state.at + 1} of ${places().length} · ${where} of the series`;
  $("slice").max = places().length - 1; $("slice").value = state.at; $("slice").setAttribute("aria-valuetext", where);
  $("scale").hidden = !map.ramp;
  if (map.ramp) {
    [$("low").textContent, $("high").textContent] = map.ends;
    $("scale").dataset.ramp = map.ramp;
    $("bar").style.background = `linear-gradient(90deg, ${RAMPS[map.ramp]})`;
  }
  buttons("chooseC", Object.values(maps()), i => { state.map = Object.keys(maps())[i]; });
  const pressed = { planes: state.plane, chooseA: state.a, chooseB: state.b, tools: state.tool, windows: preset() };
  Object.assign(pressed, { scales: SCALES.indexOf(state.scale), chooseC: Object.keys(maps()).indexOf(mapKey()) });
  for (const id in pressed) [...$(id).children].forEach((button, i) => button.setAttribute("aria-pressed", i === pressed[id]));
  $("blink").setAttribute("aria-pressed", state.blink);
}

// The crosshair and what is measured, drawn over every panel.
function element(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  made.textContent = text;
  return made;
}
function mark() {
  const { row, column } = state.cursor, { columns, high, wide } = P();
  for (const { letter, frame, marks, value } of panels) {
    const { width, height, w, h, left, top } = view(frame.clientWidth);
    const x = left + (column + .5) * w, y = top + (row + .5) * h;
    const cross = `M${x} 0V${y - 9}M${x} ${y + 9}V${height}M0 ${y}H${x - 9}M${x + 9} ${y}H${width}`;
    marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
    marks.replaceChildren(element("path", { d: cross, stroke: "#ffd23f", "stroke-opacity": .55 }));
    if (state.mark) {
      const { kind, from, to } = state.mark, r = radius(state.mark);
      const [x1, x2] = [from, to].map(end => left + (end.column + .5) * w);
      const [y1, y2] = [from, to].map(end => top + (end.row + .5) * h);
      const corner = { x: Math.min(x1, x2) - w / 2, y: Math.min(y1, y2) - h / 2 };
      const [name, shape] = {
        Rectangle: ["rect", { ...corner, width: Math.abs(x1 - x2) + w, height: Math.abs(y1 - y2) + h }],
        Circle: ["ellipse", { cx: x1, cy: y1, rx: r / wide * w, ry: r / high * h }],
        Line: ["line", { x1, y1, x2, y2 }],
      }[kind];
      marks.append(element(name, { fill: "none", stroke: "#3be0ff", "stroke-width": 1.6, class: "mark", ...shape }));
    }
    const where = letter === "A" ? `row ${row}, column ${column}: ` : "";
    if (value) $("read" + letter).textContent = where + value(row * columns + column);
  }
}
const radius = ({ from, to }) => Math.hypot((to.column - from.column) * P().wide, (to.row - from.row) * P().high);  // mm

// Pixels of a region: its corners included; those whose centres lie in the circle.
function pixels({ kind, from, to }) {
  const { rows, columns, high, wide } = P(), r = radius({ from, to }) + 1e-9;
  const between = (value, a, b) => value >= Math.min(a, b) && value <= Math.max(a, b);
  const inside = {
    Rectangle: (row, column) => between(row, from.row, to.row) && between(column, from.column, to.column),
    Circle: (row, column) => Math.hypot((column - from.column) * wide, (row - from.row) * high) <= r,
  }[kind];
  return [...Array(rows * columns).keys()].filter(i => inside(Math.floor(i / columns), i % columns));
}
function statistics(values, at, step = 1) {
  const mean = at.reduce((sum, i) => sum + values[i], 0) / at.length;
  return { mean: mean * step, sd: step * Math.sqrt(at.reduce((sum, i) => sum + (values[i] - mean) ** 2, 0) / at.length) };
}
// Values along a line at steps of a pixel at most, between pixels bilinear.
function profile(values, { from, to }) {
  const { rows, columns } = P(), down = to.row - from.row, right = to.column - from.column;
  const n = Math.max(1, Math.abs(down), Math.abs(right));
  return Array.from({ length: n + 1 }, (_, k) => {
    const y = from.row + down * k / n, x = from.column + right * k / n, i = Math.floor(y), j = Math.floor(x);
    const pixel = (row, column) => values[Math.min(rows - 1, row) * columns + Math.min(columns - 1, column)];
    const along = row => pixel(row, j) + (x - j) * (pixel(row, j + 1) - pixel(row, j));
    return along(i) + (y - i) * (along(i + 1) - along(i));
  });
}
async function measure() {
  const mine = ++measuring, found = state.mark;
  $("measured").hidden = !found || found.kind === "Line"; $("profiled").hidden = !found || found.kind !== "Line";
  if (!found) return;
  const all = await Promise.all(V.names.map((_, image) => numbers("images", image)));
  const sds = await Promise.all(V.names.map((_, image) => drawnBy(image) ? numbers("spreads", image) : null));
  if (mine !== measuring) return;
  if (found.kind === "Line") { plot(all.map(values => profile(values, found)), radius(found)); return; }
  const at = pixels(found), rows = all.map(values => statistics(values, at));
  const area = (at.length * P().high * P().wide / 100).toFixed(2), where = `${P().unit} ${P().first + place()}`;
  $("region").textContent = `${found.kind} of ${at.length} pixels, ${area} cm², ${where}; mean and SD over its pixels, HU`;
  $("spreadHead").hidden = !sds.some(Boolean);
  $("regions").replaceChildren(...rows.map(({ mean, sd }, k) => {
    const cells = [mean.toFixed(1), sd.toFixed(1), k ? (mean - rows[0].mean).toFixed(1) : "–"];
    if (sds.some(Boolean)) cells.push(sds[k] ? statistics(sds[k], at, V.steps.spreads).mean.toFixed(1) : "–");
    const cell = (name, textContent) => Object.assign(document.createElement(name), { textContent });
    const row = document.createElement("tr"), head = Object.assign(cell("th", V.names[k]), { scope: "row" });
    row.append(head, ...cells.map(text => cell("td", text)));
    return row;
  }));
}

// Controls.
function redraw() {
  panels[0].frame.ariaBusy = "true";
  asked ||= requestAnimationFrame(() => { asked = 0; draw(); });
}
function buttons(id, labels, choose) {
  if ($(id).dataset.labels === String(labels)) return;  // the focus stays where it is
  $(id).dataset.labels = labels;
  $(id).replaceChildren(...labels.map((label, i) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
    button.onclick = () => { choose(i); redraw(); };
    return button;
  }));
}
const preset = () => WINDOWS.findIndex(([, level, width]) => level === state.level && width === state.width);
// The fields follow here and not when a picture is painted: that would undo what is being typed.
function setWindow(level, width) {
  $("level").value = state.level = Math.round(level); $("width").value = state.width = Math.max(1, Math.round(width));
}
function step(by) { state.at = limit(state.at + by, 0, places().length - 1); redraw(); }
function turnTo(plane) {
  Object.assign(state, { plane, mark: null, fixed: true, zoom: 1, x: .5, y: .5 });
  Object.assign(state, { at: places().length >> 1, cursor: { row: P().rows >> 1, column: P().columns >> 1 } });
}
function pan(x, y) { [state.x, state.y] = [x, y].map(value => limit(value, .5 / state.zoom, 1 - .5 / state.zoom)); show(); }
function zoom(factor, x = .5, y = .5) {  // about a point, in shares of the panel
  const before = state.zoom;
  const moved = 1 / before - 1 / (state.zoom = limit(before * factor, 1, 32));
  pan(state.x + (x - .5) * moved, state.y + (y - .5) * moved);
}
const full = () => document.fullscreenElement ? document.exitFullscreen() : $("viewer").requestFullscreen();
function blink() {
  Object.assign(state, { blink: !state.blink, swap: false }); clearInterval(timer);
  // 1 Hz, below the 3 Hz of WCAG 2.3.1
  if (state.blink) timer = setInterval(() => { state.swap = !state.swap; redraw(); }, 500);
  redraw();
}
const inside = (row, column) => ({ row: limit(row, 0, P().rows - 1), column: limit(column, 0, P().columns - 1) });
function clear() { Object.assign(state, { mark: null, fixed: true }); mark(); measure(); }
function corner() {  // by keyboard: the first sets one end of a mark at the crosshair, the second the other
  if (!state.tool) return;
  state.mark = state.fixed ? { kind: TOOLS[state.tool], from: state.cursor, to: state.cursor } : state.mark;
  state.fixed = !state.fixed; mark(); measure();
}
function moveCross(row, column) {
  const { rows, columns } = P(), reach = .5 / state.zoom;
  state.cursor = inside(state.cursor.row + row, state.cursor.column + column);
  if (!state.fixed) { state.mark = { ...state.mark, to: state.cursor }; measure(); }
  const [x, y] = [(state.cursor.column + .5) / columns, (state.cursor.row + .5) / rows];
  pan(limit(state.x, x - reach, x + reach), limit(state.y, y - reach, y + reach));
  $("spoken").textContent = LETTERS.map(letter => `${letter}: ${$("read" + letter).textContent}`).join("; ");
}

// Mouse, pen and touch on a panel.
function under({ frame }, e) {
  const box = frame.getBoundingClientRect(), { w, h, left, top } = view(box.width);
  return inside(Math.floor((e.clientY - box.top - top) / h), Math.floor((e.clientX - box.left - left) / w));
}
function down(panel, e) {
  const kind = e.button === 2 || e.altKey || e.ctrlKey ? "window" : e.button === 1 || e.shiftKey || !state.tool ? "move" : "mark";
  drag = { kind, e, ...structuredClone(state) };
  const at = under(panel, e);
  if (kind === "mark") Object.assign(state, { fixed: true, mark: { kind: TOOLS[state.tool], from: at, to: at } });
  panel.frame.setPointerCapture(e.pointerId);
}
function moved(panel, e) {
  state.cursor = under(panel, e);
  if (!drag) return mark();
  const dx = e.clientX - drag.e.clientX, dy = e.clientY - drag.e.clientY, { clientWidth, clientHeight } = panel.frame;
  if (drag.kind === "window") { setWindow(drag.level + 2 * dy, drag.width + 2 * dx); redraw(); }
  else if (drag.kind === "move") pan(drag.x - dx / clientWidth / state.zoom, drag.y - dy / clientHeight / state.zoom);
  else { state.mark = { ...state.mark, to: state.cursor }; mark(); measure(); }
}
function wheel({ frame }, e) {
  const box = frame.getBoundingClientRect();
  e.preventDefault();
  scrolled += e.deltaY * (e.deltaMode ? 40 : 1);  // a wheel's notch is 100 pixels or so; touchpads send many small ones
  if (e.ctrlKey) zoom(2 ** (-e.deltaY / 200), (e.clientX - box.left) / box.width, (e.clientY - box.top) / box.height);
  else if (Math.abs(scrolled) >= 40) { step(Math.sign(scrolled)); scrolled = 0; }
}
for (const panel of panels) {
  panel.frame.onpointerdown = e => down(panel, e);
  panel.frame.onpointermove = e => moved(panel, e);
  panel.frame.onpointerup = panel.frame.onpointercancel = () => { drag = null; };
  // No focus by a click: arrow keys go on scrolling slices.
  panel.frame.onmousedown = e => { e.preventDefault(); document.activeElement.blur(); };
  panel.frame.oncontextmenu = e => e.preventDefault();
  panel.frame.ondblclick = () => zoom(0);
  panel.frame.addEventListener("wheel", e => wheel(panel, e), { passive: false });
}

const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const KEYS = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), b: blink, Escape: clear,
  "+": () => zoom(1.25), "-": () => zoom(.8), 0: () => zoom(0),
  p: () => { turnTo(next(V.planes, state.plane)); redraw(); },
  w: () => { setWindow(...WINDOWS[next(WINDOWS, preset())].slice(1)); redraw(); },
  d: () => { state.scale = SCALES[next(SCALES, SCALES.indexOf(state.scale))]; redraw(); },
  m: () => { const keys = Object.keys(maps()); state.map = keys[next(keys, keys.indexOf(mapKey()))]; redraw(); },
  t: () => { state.tool = next(TOOLS, state.tool); redraw(); },
};
document.onkeydown = e => {
  const focused = e.target.closest(".frame"), digit = /^Digit([1-9])$/.exec(e.code);
  if (e.target !== document.body && !$("viewer").contains(e.target)) return;
  if (e.target.matches("input[type=number]") || e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.target.matches("input[type=range]") && e.key.startsWith("Arrow")) return;
  if (focused && ARROWS[e.key]) moveCross(...ARROWS[e.key].map(by => by * (e.shiftKey ? 10 : 1)));
  else if (focused && e.key.startsWith("Page")) step(e.key === "PageUp" ? -1 : 1);
  else if (focused && (e.key === "Enter" || e.key === " ")) corner();
  else if (digit && digit[1] <= V.names.length) { state[e.shiftKey ? "b" : "a"] = digit[1] - 1; redraw(); }
  else if (KEYS[e.key]) KEYS[e.key]();
  else return;
  e.preventDefault();
};
buttons("planes", V.planes.map(plane => plane.name), turnTo);
buttons("chooseA", V.names, i => { state.a = i; });
buttons("chooseB", V.names, i => { state.b = i; });
buttons("windows", WINDOWS.map(([name]) => name), i => setWindow(...WINDOWS[i].slice(1)));
buttons("scales", SCALES.map(scale => "± " + scale), i => { state.scale = SCALES[i]; });
buttons("tools", TOOLS, i => { state.tool = i; });
$("orientation").hidden = V.planes.length < 2;
$("slice").oninput = e => { state.at = +e.target.value; redraw(); };
$("level").onchange = e => { setWindow(+e.target.value, state.width); redraw(); };
$("width").onchange = e => { setWindow(state.level, +e.target.value); redraw(); };
const CLICKED = { blink, clear, closer: () => zoom(1.25), farther: () => zoom(.8), fit: () => zoom(0), full };
for (const id in CLICKED) $(id).onclick = CLICKED[id];
if (WORK) $("holds").textContent = `Every slice (${V.planes[0].of}), from viewer/ beside this page.`;
new ResizeObserver(show).observe(panels[0].frame);
turnTo(0);
setWindow(state.level, state.width);
draw();
