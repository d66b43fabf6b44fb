// The plot of a profile, and figures to save; viewer.js stands before this script.
const COLOURS = ["#1d2430", "#0b5fa5", "#a8201a", "#1b7f4b", "#8a4fbf", "#9a5b00"], DASHES = ["", "7 3", "2 2", "9 3 2 3"];
function plot(curves, length) {
  const all = curves.flat(), low = Math.min(...all), high = Math.max(...all), span = Math.max(1, high - low);
  const n = curves[0].length - 1, x = k => 60 + 900 * k / n, y = value => 190 - 175 * (value - low) / span;
  const line = (x1, x2, y1, more) => element("line", { x1, x2, y1, y2: y1, ...more });
  const text = (x, y, content, anchor = "start") => element("text", { x, y, "text-anchor": anchor, "font-size": 13 }, content);
  const drawn = [low, (low + high) / 2, high].flatMap(value =>
    [line(60, 960, y(value), { stroke: "#dfe3ea" }), text(54, y(value) + 4, Math.round(value), "end")]);
  drawn.push(text(60, 210, "0 mm"), text(960, 210, length.toFixed(1) + " mm", "end"));
  drawn.push(text(510, 210, "HU along the line", "middle"));
  curves.forEach((curve, k) => {
    const points = curve.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    const at = 60 + 900 * k / curves.length, dash = DASHES[k % DASHES.length];
    const style = { stroke: COLOURS[k % COLOURS.length], "stroke-width": k ? 1.6 : 2.4, "stroke-dasharray": dash };
    drawn.push(element("polyline", { points, fill: "none", ...style }));
    drawn.push(line(at, at + 30, 234, style), text(at + 36, 238, V.names[k]));
  });
  const range = curve => [Math.min(...curve), Math.max(...curve)].map(Math.round).join(" to ");
  const ranges = curves.map((curve, k) => `${V.names[k]}: ${range(curve)}`);
  $("plot").replaceChildren(...drawn);
  $("plot").setAttribute("aria-label", `HU along a line of ${length.toFixed(1)} mm; ${ranges.join("; ")}`);
}

// The three panels with what is drawn over them, scale, window, and what is measured.
function figure() {
  const { clientWidth: w, clientHeight: h } = panels[0].frame, gap = 18, top = 70, all = 3 * w + 4 * gap;
  const root = element("svg", { "font-family": "system-ui, sans-serif", "font-size": 13, fill: "#1d2430" });
  const write = (x, y, content, more = {}) => root.append(element("text", { x, y, ...more }, content));
  root.append(element("rect", { width: "100%", height: "100%", fill: "#fff" }));
  write(gap, 28, document.querySelector("h1").textContent, { "font-size": 18, "font-weight": 650 });
  panels.forEach(({ letter, canvas, marks }, k) => {
    const x = gap + k * (w + gap), viewBox = marks.getAttribute("viewBox");
    const inner = element("svg", { x, y: top, width: w, height: h, viewBox });
    write(x, top - 10, `${letter} · ${$("name" + letter).textContent}`);
    inner.append(element("image", { href: canvas.toDataURL(), width: "100%", height: "100%" }));
    inner.append(...[...marks.querySelectorAll(".mark")].map(node => node.cloneNode()));
    root.append(inner);
  });
  let y = top + h + 24;
  write(gap, y, `${$("where").textContent} · level ${state.level}, width ${state.width} HU`);
  if (!$("scale").hidden) {
    const shade = element("linearGradient", { id: "ramp" }), stops = RAMPS[$("scale").dataset.ramp], x = gap + 2 * (w + gap);
    shade.append(...stops.map((colour, k) => element("stop", { offset: k / (stops.length - 1), "stop-color": colour })));
    root.append(shade, element("rect", { x: x + 90, y: y - 10, width: w - 180, height: 10, fill: "url(#ramp)" }));
    write(x + 84, y, $("low").textContent, { "text-anchor": "end" }); write(x + w - 84, y, $("high").textContent);
  }
  if (!$("profiled").hidden) {
    const viewBox = $("plot").getAttribute("viewBox");
    const plot = element("svg", { x: gap, y: y + 14, width: all - 2 * gap, height: 240, viewBox });
    plot.append(...[...$("plot").children].map(node => node.cloneNode(true)));
    root.append(plot); y += 258;
  }
  if (!$("measured").hidden) {
    const table = [...$("measured").querySelectorAll("tr")];
    write(gap, y += 28, $("region").textContent);
    for (const { cells } of table) {
      y += 20;
      [...cells].forEach((cell, k) => cell.hidden || write(gap + 180 * k, y, cell.textContent));
    }
  }
  write(gap, y += 26, "Research use only, not for diagnosis");
  root.setAttribute("width", all); root.setAttribute("height", y += 16);
  return { text: new XMLSerializer().serializeToString(root), width: all, height: y };
}
function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob); link.download = `ctflow-${P().unit}-${P().first + place()}.${ending}`; link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1e4);
}
async function savePng() {
  const { text, width, height } = figure(), picture = new Image(), canvas = new OffscreenCanvas(2 * width, 2 * height);
  picture.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
  await picture.decode();
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  save(await canvas.convertToBlob({ type: "image/png" }), "png");
}
$("savePng").onclick = savePng;
$("saveSvg").onclick = () => save(new Blob([figure().text], { type: "image/svg+xml" }), "svg");
