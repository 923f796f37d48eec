// The facts of a model file: a map of its parameters, the training curve, samples, config and record.
const ROW_HEIGHT = 2.1; // rem, of a level of the tree
const share = (group) => (data.parameters ? group.parameters / data.parameters : 0);
const copies = (group) => (group.copies > 1 ? " × " + group.copies : "");

// ---- parameters

// Boxes for the children of a group, from `left` (percent) on; returns the number of levels.
function showTree(group, left, depth) {
  let levels = depth;
  for (const child of group.children) {
    byId("tree").append(treeBox(child, left, depth));
    levels = Math.max(levels, depth + 1, showTree(child, left, depth + 1));
    left += 100 * share(child);
  }
  return levels;
}

function treeBox(group, left, depth) {
  const details = `${group.path}${copies(group)}: ${group.parameters.toLocaleString("en")} parameters, ` +
    `${percent(share(group))}${group.shape ? ", " + group.shape : ""}`;
  const attributes = { type: "button", "aria-pressed": "false", "aria-label": details, ...(group.copies > 1 ? { class: "repeated" } : {}) };
  const box = element("button", attributes, visibleWithSpaces(group.name + (group.children.length ? copies(group) : "")));
  Object.assign(box.style, { left: left + "%", width: 100 * share(group) + "%", top: ROW_HEIGHT * depth + "rem" });
  const showDetails = () => {
    for (const other of byId("tree").children) other.setAttribute("aria-pressed", String(other === box));
    byId("group-details").textContent = details;
  };
  box.addEventListener("pointerenter", showDetails);
  box.addEventListener("focus", showDetails);
  return box;
}

function treeRows(group, depth = 0) {
  return group.children.flatMap((child) => [
    [tokenSpan("\u00a0".repeat(2 * depth) + child.name + copies(child)), child.shape,
      child.parameters.toLocaleString("en"), percent(share(child))],
    ...treeRows(child, depth + 1)]);
}

// ---- training curve

// A logarithmic scale shows the steep beginning of a run and small differences at its end. It reaches over LOG_RANGE at
// most; lower values are drawn at its bottom.
const LOG_RANGE = 10_000;
function scaleOf({ steps, training, validation_steps: validationSteps, validation }) {
  const first = Math.min(...steps), last = Math.max(...steps, ...validationSteps);
  const values = [...training, ...validation], high = Math.max(...values) || 1;
  const low = Math.max(Math.min(...values), high / LOG_RANGE);
  return high > low ? { first, last, low, high } : { first, last, low: low / 1.5, high: 1.5 * high };
}

// Round values from low to high, evenly spaced on a logarithmic scale.
function roundValues(low, high) {
  if (high < 3 * low) {
    const power = 10 ** Math.floor(Math.log10((high - low) / 2)), step = power * [1, 2, 5, 10].find((factor) => (high - low) / (power * factor) < 6);
    return Array.from({ length: 7 }, (_, i) => (Math.ceil(low / step) + i) * step).filter((value) => value <= high);
  }
  const powers = Array.from({ length: 12 }, (_, i) => Math.floor(Math.log10(low)) + i);
  return powers.flatMap((power) => [1, 2, 5].map((factor) => factor * 10 ** power)).filter((value) => value >= low && value <= high);
}

function curveChart(curve) {
  const { steps, training, validation_steps: validationSteps, validation } = curve;
  const { first, last, low, high } = scaleOf(curve);
  const width = Math.max(320, Math.min(900, byId("curve").clientWidth || 900)), height = 0.4 * width + 60;
  const left = 56, right = 12, top = 12, bottom = 34; // margins
  const x = (step) => left + ((step - first) / (last - first || 1)) * (width - left - right);
  const y = (bits) => top + (Math.log(high / Math.max(bits, low)) / Math.log(high / low)) * (height - top - bottom);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": curve.summary });
  for (const bits of roundValues(low, high)) {
    svg.append(element("line", { class: "grid", x1: left, x2: width - right, y1: y(bits), y2: y(bits) }),
      element("text", { x: left - 8, y: y(bits) + 4, "text-anchor": "end" }, Number(bits.toPrecision(4))));
  }
  for (let i = 0; i <= 4; i++) {
    const step = first + ((last - first) * i) / 4, anchor = i === 0 ? "start" : i === 4 ? "end" : "middle";
    svg.append(element("text", { x: x(step), y: height - 10, "text-anchor": anchor }, Math.round(step).toLocaleString("en")));
  }
  const line = (xs, ys, kind) => element("polyline", { class: kind,
    points: xs.map((step, i) => `${x(step).toFixed(1)},${y(ys[i]).toFixed(1)}`).join(" ") });
  const circle = (step, bits) => element("circle", { cx: x(step), cy: y(bits), r: 4 }, element("title", {}, `step ${step}: ${bits.toFixed(3)}`));
  svg.append(line(steps, training, "training"), line(validationSteps, validation, "validation"),
    ...validationSteps.map((step, i) => circle(step, validation[i])));
  return svg;
}

function showCurve(curve) {
  const { steps, training, validation_steps: validationSteps, validation, label } = curve;
  const legend = element("p", { class: "legend" }, element("span", {}, element("i"), " training"),
    ...(validation.length ? [element("span", {}, element("i", { class: "validation" }), " " + label)] : []),
    element("span", {}, "bits per byte by step (logarithmic scale)"));
  byId("curve").append(legend, curveChart(curve), element("p", {}, curve.summary));
  byId("curve-table").append(
    table("Bits per byte", ["step", "training"], steps.map((step, i) => [step, training[i].toFixed(4)]), [0, 1]),
    table(label[0].toUpperCase() + label.slice(1), ["step", "bits per byte"], validationSteps.map((step, i) => [step, validation[i].toFixed(3)]), [0, 1]));
}

// ---- start

function showPairs(id, pairs) {
  byId(id).append(...pairs.flatMap(([name, value]) => [element("dt", {}, visibleWithSpaces(name)), element("dd", {}, visibleWithSpaces(value))]));
}

byId("tree").style.height = ROW_HEIGHT * showTree(data.tree, 0, 0) + "rem";
byId("group-table").append(table("Parameters", ["name", "shape", "parameters", "share"], treeRows(data.tree), [2, 3]));
if (data.curve) showCurve(data.curve);
else byId("curve-section").replaceChildren(element("h2", { id: "curve-title" }, "Training"), element("p", {}, "This file has no training curve."));
for (const [step, text] of data.samples) {
  const prompt = element("i", {}, visibleWithSpaces(data.prompt));
  byId("samples").append(element("li", {}, element("b", {}, "step " + step), " ", prompt, " ", visibleWithSpaces(text)));
}
if (!data.samples.length) byId("samples-section").remove();
showPairs("record", data.record);
showPairs("config", data.config);
