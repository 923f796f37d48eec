// The chart of a training curve.
//
// A logarithmic scale shows the steep beginning of a run and small differences at its end. It spans at most LOG_RANGE;
// lower values are drawn at its bottom.
const LOG_RANGE = 10_000;

// Round values from low to high, evenly spaced; over more than a power of ten, on a logarithmic scale.
function roundValues(low, high) {
  if (high < 10 * low) {
    const power = 10 ** Math.floor(Math.log10((high - low) / 2)), step = power * [1, 2, 5, 10].find((factor) => (high - low) / (power * factor) < 6);
    return Array.from({ length: 7 }, (_, i) => (Math.ceil(low / step) + i) * step).filter((value) => value <= high);
  }
  const powers = Array.from({ length: 12 }, (_, i) => Math.floor(Math.log10(low)) + i);
  return powers.flatMap((power) => [1, 2, 5].map((factor) => factor * 10 ** power)).filter((value) => value >= low && value <= high);
}

// The losses of a run by step, as an SVG that is `width` pixels wide; `nameStep` names a step.
function curveChart(curve, width, nameStep) {
  const { steps, training, validation_steps: validationSteps, validation } = curve;
  const first = Math.min(...steps), last = Math.max(...steps, ...validationSteps);
  const values = [...training, ...validation], most = Math.max(...values) || 1;
  const least = Math.max(Math.min(...values), most / LOG_RANGE);
  const [low, high] = most > least ? [least, most] : [least / 1.5, 1.5 * most];
  const height = 0.4 * width + 60;
  const left = 56, right = 12, top = 12, bottom = 34; // margins
  const x = (step) => left + ((step - first) / (last - first || 1)) * (width - left - right);
  const y = (bits) => top + (Math.log(high / Math.max(bits, low)) / Math.log(high / low)) * (height - top - bottom);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": curve.summary });
  for (const bits of roundValues(low, high)) {
    svg.append(element("line", { class: "grid", x1: left, x2: width - right, y1: y(bits), y2: y(bits) }),
      element("text", { x: left - 8, y: y(bits) + 4, "text-anchor": "end" }, Number(bits.toPrecision(4))));
  }
  const parts = width < 500 ? 2 : 4; // of the axis of steps
  for (let i = 0; i <= parts; i++) {
    const step = first + ((last - first) * i) / parts, anchor = i === 0 ? "start" : i === parts ? "end" : "middle";
    const figure = Math.round(step).toLocaleString("en");
    svg.append(element("text", { x: x(step), y: height - 10, "text-anchor": anchor }, i === parts ? nameStep(figure) : figure));
  }
  const line = (xs, ys, kind) => element("polyline", { class: kind,
    points: xs.map((step, i) => `${x(step).toFixed(1)},${y(ys[i]).toFixed(1)}`).join(" ") });
  const circle = (step, bits) => element("circle", { cx: x(step), cy: y(bits), r: 4 }, element("title", {}, `${nameStep(step)}: ${bits.toFixed(3)}`));
  svg.append(line(steps, training, "training"), line(validationSteps, validation, "validation"),
    ...validationSteps.map((step, i) => circle(step, validation[i])));
  return svg;
}
