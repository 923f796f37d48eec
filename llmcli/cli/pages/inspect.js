// What is in a file: a map of its parameters, the curve of its training, its config and record.
const levels = [];

function lay(part, left, depth) {
  let x = left;
  for (const inner of part.parts) {
    levels[depth] = depth;
    const width = data.parameters ? (100 * inner.parameters) / data.parameters : 0;
    const name = inner.name + (inner.parts.length && inner.copies > 1 ? " × " + inner.copies : "");
    const what = `${inner.path}${inner.copies > 1 ? " × " + inner.copies : ""}: ${inner.parameters.toLocaleString("en")} parameters, ` +
      `${percent(data.parameters ? inner.parameters / data.parameters : 0)}${inner.shape ? ", " + inner.shape : ""}`;
    const box = make("button", { type: "button", "aria-pressed": "false", "aria-label": what, ...(inner.copies > 1 ? { class: "numbered" } : {}) }, shown(name).replace(/·/g, " "));
    Object.assign(box.style, { left: x + "%", width: width + "%", top: 2.1 * depth + "rem" });
    const tell = () => {
      for (const other of at("map").children) other.setAttribute("aria-pressed", String(other === box));
      at("part").textContent = what;
    };
    box.addEventListener("pointerenter", tell);
    box.addEventListener("focus", tell);
    at("map").append(box);
    lay(inner, x, depth + 1);
    x += width;
  }
}

function rows(part, depth = 0) {
  return part.parts.flatMap((inner) => [
    [token(" ".repeat(2 * depth).replace(/ /g, "\u00a0") + inner.name + (inner.copies > 1 ? " × " + inner.copies : "")), inner.shape,
      inner.parameters.toLocaleString("en"), percent(data.parameters ? inner.parameters / data.parameters : 0)],
    ...rows(inner, depth + 1)]);
}

function drawCurve({ steps, training, held_out_steps: heldSteps, held_out: held, said }) {
  const W = Math.max(320, Math.min(900, at("curve").clientWidth || 900)), height = 0.4 * W + 60, left = 56, right = 12, top = 12, bottom = 34;
  const first = Math.min(...steps), last = Math.max(...steps, ...heldSteps);
  const settled = [...steps.map((s, i) => [s, training[i]]), ...heldSteps.map((s, i) => [s, held[i]])];
  const low = Math.min(...settled.map(([, y]) => y));
  let high = Math.max(...settled.filter(([s]) => s >= first + data.settle * (last - first)).map(([, y]) => y));
  if (!(high > low)) high = low + 1;
  const x = (s) => left + ((s - first) / (last - first || 1)) * (W - left - right);
  const y = (b) => top + (1 - (b - low) / (high - low)) * (height - top - bottom);
  const svg = make("svg", { viewBox: `0 0 ${W} ${height}`, role: "img", "aria-label": said });
  for (let i = 0; i <= 4; i++) {
    const b = low + ((high - low) * i) / 4, s = first + ((last - first) * i) / 4;
    svg.append(make("line", { class: "grid", x1: left, x2: W - right, y1: y(b), y2: y(b) }),
      make("text", { x: left - 8, y: y(b) + 4, "text-anchor": "end" }, b.toFixed(2)),
      make("text", { x: x(s), y: height - 10, "text-anchor": i === 0 ? "start" : i === 4 ? "end" : "middle" }, Math.round(s).toLocaleString("en")));
  }
  const line = (xs, ys, kind) => make("polyline", { class: kind, "clip-path": "url(#inside)", points: xs.map((s, i) => `${x(s).toFixed(1)},${y(ys[i]).toFixed(1)}`).join(" ") });
  svg.append(make("clipPath", { id: "inside" }, make("rect", { x: left, y: top - 2, width: W - left - right, height: height - top - bottom + 4 })),
    line(steps, training, "training"), line(heldSteps, held, "held"),
    ...heldSteps.flatMap((s, i) => held[i] > high ? [] : make("circle", { cx: x(s), cy: y(held[i]), r: 4 }, make("title", {}, `step ${s}: ${held[i].toFixed(3)}`))));
  at("curve").append(make("p", { class: "legend" }, make("span", {}, make("i"), " training"),
    ...(held.length ? [make("span", {}, make("i", { class: "held" }), " held-out text (interim)")] : []), make("span", {}, "bits per byte by step")),
    svg, make("p", {}, said));
  at("points").append(table("Bits per byte", ["step", "training"], steps.map((s, i) => [s, training[i].toFixed(4)]), [0, 1]),
    table("Held-out text", ["step", "bits per byte"], heldSteps.map((s, i) => [s, held[i].toFixed(3)]), [0, 1]));
}

const list = (id, pairs) => at(id).append(...pairs.flatMap(([name, value]) => [make("dt", {}, shown(name).replace(/·/g, " ")), make("dd", {}, shown(value).replace(/·/g, " "))]));
lay(data.map, 0, 0);
at("map").style.height = 2.1 * levels.length + "rem";
at("parts").append(table("Parameters", ["part", "shape", "parameters", "share"], rows(data.map), [2, 3]));
if (data.curve) drawCurve(data.curve);
else at("curve-section").replaceChildren(make("h2", { id: "curve-title" }, "Training"), make("p", {}, "There is no curve of a training in this file."));
for (const [step, text] of data.samples) {
  at("samples").append(make("li", {}, make("b", {}, "step " + step), " ", make("i", {}, shown(data.prompt).replace(/·/g, " ")), " ", shown(text).replace(/·/g, " ")));
}
if (!data.samples.length) at("samples-section").remove();
list("record", data.record);
list("config", data.config);
