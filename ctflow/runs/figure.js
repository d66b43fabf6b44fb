// The plot of a profile, and figures to save; viewer.js stands before this script.
function plot(curves, length) {
  const all = curves.flat().filter(Number.isFinite), low = Math.min(...all), high = Math.max(...all);
  const y = value => (190 - 175 * (value - low) / Math.max(1, high - low)).toFixed(1);
  const ranges = curves.map((curve, k) => {
    const line = $("plot").querySelectorAll("g")[k], x = i => (60 + 900 * i / (curve.length - 1)).toFixed(1);
    line.style.display = curve ? "" : "none";
    if (!curve) return "";
    line.firstElementChild.setAttribute("points", curve.map((value, i) => `${x(i)},${y(value)}`).join(" "));
    return `; ${V.names[k]}: ${Math.min(...curve).toFixed()} to ${Math.max(...curve).toFixed()}`;
  });
  const ticks = { highest: high, halfway: (low + high) / 2, lowest: low };
  for (const id in ticks) $(id).textContent = ticks[id].toFixed();
  $("along").textContent = length.toFixed(1) + " mm";
  $("plot").ariaLabel = `HU along a line of ${length.toFixed(1)} mm${ranges.join("")}`;
}

// The page's #sheet, filled: the panels with what is measured, the scale, and the window.
function figure() {
  const root = $("sheet").content.firstElementChild.cloneNode(true);
  const { canvas: { width, height }, marks } = panels[0], { zoom, x, y } = state;
  const high = Math.round(480 * $("frameA").clientHeight / $("frameA").clientWidth);
  const viewBox = `${(x - .5 / zoom) * width} ${(y - .5 / zoom) * height} ${width / zoom} ${height / zoom}`;
  const fill = (css, values) => root.querySelectorAll(css).forEach(part => {
    for (const [key, value] of Object.entries(values(part.dataset))) part.setAttribute(key, value);
  });
  for (const part of root.querySelectorAll("[data-with]")) if ($(part.dataset.with).hidden) part.remove();
  for (const part of root.querySelectorAll("[data-from]")) {
    const { value, textContent } = $(part.dataset.from);
    part.textContent = value || textContent;
  }
  fill("[data-canvas]", ({ canvas }) => ({ href: $(canvas).toDataURL() }));
  fill(".panel", () => ({ height: high, viewBox }));
  fill(".panel image", () => ({ width, height }));
  fill(".mark", () => ({ d: marks.children[1].getAttribute("d") }));
  fill(".below", () => ({ transform: `translate(0 ${high})` }));
  root.querySelector(".plot")?.append($("plot").cloneNode(true));
  const more = root.querySelector("[data-height]")?.dataset.height || 0;  // what is measured
  root.setAttribute("height", 130 + high + +more);
  return root;
}
async function save(ending) {
  const root = figure(), link = document.createElement("a");
  link.download = `ctflow-${where().replace(" ", "-")}.${ending}`;
  link.href = "data:image/svg+xml," + encodeURIComponent(new XMLSerializer().serializeToString(root));
  if (ending === "png") {
    const picture = new Image(), canvas = document.createElement("canvas");
    picture.src = link.href;
    await picture.decode();
    Object.assign(canvas, { width: 2 * picture.width, height: 2 * picture.height });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    link.href = canvas.toDataURL();
  }
  link.click();
}
