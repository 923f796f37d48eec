// The facts of a model file: a map of its parameters, the training curve, samples, config and record.
const ROW_HEIGHT = 2.1; // height of one level of the tree, in rem
const share = (group) => (data.parameters ? group.parameters / data.parameters : 0);
const copies = (group) => (group.copies > 1 ? " × " + group.copies : "");

// ---- parameters

// Draws boxes for the children of a group, starting at `left` (percent); returns the number of levels.
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

function showCurve(curve) {
  const { steps, training, validation_steps: validationSteps, validation, label } = curve;
  const legend = element("p", { class: "legend" }, element("span", {}, element("i"), " training"),
    ...(validation.length ? [element("span", {}, element("i", { class: "validation" }), " " + label)] : []),
    element("span", {}, "bits per byte by step (logarithmic scale)"));
  byId("curve").append(legend, curveChart(curve, Math.max(320, Math.min(900, byId("curve").clientWidth || 900))), element("p", {}, curve.summary));
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
