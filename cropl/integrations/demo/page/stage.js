// The picture with what is drawn over it, and the region that the user draws, by mouse or keys.

export const GRID = 8;
const SIDE = 1000;         // of the overlay, whatever the picture's size
const $ = (id) => document.getElementById(id);

function shape(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function box(element, region) {
  element.style.display = region ? "" : "none";
  if (!region) return;
  const [x0, y0, x1, y1] = region, unit = SIDE / GRID;
  shape(element, { x: x0 * unit, y: y0 * unit, width: (x1 - x0 + 1) * unit, height: (y1 - y0 + 1) * unit });
}

/** Another picture, {width, height, name}. */
export function showImage(picture, address) {
  $("stage").style.setProperty("--ratio", (picture.width / picture.height).toFixed(4));
  $("image").src = address;
  $("image").alt = picture.name;
}

/** The region that counts, the localizer's where that is another, the tokens that are left, and the probabilities. */
export function draw({ region, other, mask, heat, grid }) {
  const lines = grid ? Array.from({ length: GRID - 1 }, (_, i) => (i + 1) * SIDE / GRID) : [];
  shape($("grid"), { d: lines.map((at) => `M${at} 0V${SIDE}M0 ${at}H${SIDE}`).join("") });
  box($("region"), region);
  box($("predicted"), other);
  const holes = mask ? mask.kept.map(([x, y, w, h]) => `M${x} ${y}h${w}v${h}h${-w}z`).join("") : "";
  shape($("dropped"), { d: mask ? `M0 0H${SIDE}V${SIDE}H0z${holes}` : "" });
  shape($("outline"), { d: mask ? mask.outline.map(([x, y, u, v]) => `M${x} ${y}L${u} ${v}`).join("") : "" });
  const cells = $("heat"), unit = SIDE / GRID;
  cells.replaceChildren();
  (heat || []).forEach((row, j) => row.forEach((p, i) => {
    const cell = document.createElementNS(cells.namespaceURI, "rect");
    const place = { x: i * unit, y: j * unit, width: unit, height: unit };
    cells.append(shape(cell, { ...place, "fill-opacity": (0.75 * p).toFixed(3) }));
  }));
}

/**
 * Tell of regions that the user draws.
 *
 * @param current gives the region that counts now, or null.
 * @param onRegion gets a region, or null for the localizer's, and how it came: "drag", "drawn" or "key".
 * @param onBlock gets the block under the mouse, [x, y], or null.
 */
export function listen(current, onRegion, onBlock) {
  const stage = $("stage");
  let from = null, last = null;
  const drag = (at) => {
    const [x0, x1] = [from[0], at[0]].sort(), [y0, y1] = [from[1], at[1]].sort();
    const region = [x0, y0, x1, y1];
    if (String(region) !== String(last)) onRegion(last = region, "drag");
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = block(event);
    last = null;
    stage.setPointerCapture(event.pointerId);
    drag(from);
  });
  stage.addEventListener("pointermove", (event) => {
    onBlock(block(event));
    if (from) drag(block(event));
  });
  stage.addEventListener("pointerup", () => {
    if (from) onRegion(last, "drawn");
    from = null;
  });
  stage.addEventListener("pointercancel", () => { from = null; });
  stage.addEventListener("pointerleave", () => onBlock(null));
  stage.addEventListener("keydown", (event) => {
    if (event.key === "Escape") onRegion(null, "drawn");
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [x0, y0, x1, y1] = current() || [2, 2, 5, 5], [dx, dy] = step;
    const moved = event.shiftKey ? [x0, y0, x1 + dx, y1 + dy] : [x0 + dx, y0 + dy, x1 + dx, y1 + dy];
    if (isRegion(moved)) onRegion(moved, "key");
  });
}

export function isRegion([x0, y0, x1, y1]) {
  return [x0, y0, x1, y1].every((at) => Number.isInteger(at) && at >= 0 && at < GRID) && x0 <= x1 && y0 <= y1;
}

function block(event) {
  const frame = $("stage").getBoundingClientRect();
  const at = (offset, length) => Math.max(0, Math.min(GRID - 1, Math.floor(offset / length * GRID)));
  return [at(event.clientX - frame.left, frame.width), at(event.clientY - frame.top, frame.height)];
}
