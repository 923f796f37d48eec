// How a model came to be: its loss curve, its samples, and the probe, one prompt over the course of the run. Shared by the
// page with a model inside and the page of a run in progress.
// Rows are [name, value], or [name, value, reason]; reasons are the sentences that the record has, in English.
const showPairs = (id, rows) => byId(id).replaceChildren(...rows.flatMap(([name, value, reason]) => [
  element("dt", {}, visibleWithSpaces(recordName(name))),
  element("dd", {}, visibleWithSpaces(recordValue(name, value)), ...(reason ? [element("span", { lang: "en" }, ` (${visibleWithSpaces(reason)})`)] : [])),
]));

// Shows a run: the record of a model, or the state of a run in progress.
function showRun({ plan, verdict, curve, samples, prompt, probe: predictions }) {
  byId("verdict").replaceChildren(...verdict.map((one) => element("p", { lang: "en" }, visibleWithSpaces(one))));
  showPairs("plan", plan);
  byId("samples").replaceChildren(...samples.map(([step, sample]) => {
    const words = [element("b", {}, say("atStep", { step })), element("i", {}, visibleWithSpaces(prompt))];
    return element("li", {}, ...words.flatMap((node) => [node, " "]), visibleWithSpaces(sample));
  }));
  byId("samples-section").hidden = !samples.length;
  showLosses(curve);
  showProbe(predictions, curve);
}

function showLosses(curve) {
  byId("curve-section").hidden = !curve;
  if (!curve) return;
  const summary = recordValue("curve", curve.summary);
  const key = (name) => element("span", {}, element("i", { class: name }), ` ${say(name)}`);
  const width = Math.max(320, Math.min(900, byId("curve").clientWidth || 900));
  const legend = element("p", { class: "legend" }, key("training"), ...(curve.validation.length ? [key("validation")] : []));
  const chart = curveChart({ ...curve, summary }, width, (step) => say("atStep", { step }));
  byId("curve").replaceChildren(legend, chart, element("p", {}, summary));
}

// ---- the probe

const ONCE_LIKELY = 3; // a word that was ever among so many likeliest ones has a row
const choiceSpan = (name, continues) => (name === "<end>" ? element("span", {}, say("end")) : tokenSpan((continues ? "…" : "") + name));
function restRow(rest) {
  return rest < 0.0005 ? [] : [{ name: element("span", {}, say("rest")), share: rest, kind: "rest" }];
}
let probe = null; // its prompt and points: [step, validation loss or null, [[word, probability], ...]]

// Shows the predictions; the slider stays where it is, or at the newest prediction.
function showProbe(next, curve) {
  const slider = byId("probe-step"), isAtEnd = !probe || Number(slider.value) >= probe.points.length - 1;
  probe = next && { ...next, curve };
  byId("probe-section").hidden = !probe;
  if (!probe) return;
  slider.max = probe.points.length - 1;
  if (isAtEnd) slider.value = slider.max;
  byId("probe-prompt").replaceChildren(element("q", {}, visibleWithSpaces(probe.prompt)));
  showProbePoint();
}

// Draws the bars of one point. Each word has the same place at all points, so that its bar can be followed.
function showProbePoint() {
  const [step, bits, likeliest] = probe.points[Number(byId("probe-step").value)];
  const shares = new Map(likeliest), last = probe.points.at(-1)[2].map(([word]) => word);
  const earlier = probe.points.flatMap(([, , words]) => words.slice(0, ONCE_LIKELY).map(([word]) => word));
  const words = [...new Set([...last, ...earlier])];
  const most = Math.max(0, Math.min(likeliest.reduce((rest, [, share]) => rest - share, 1), ...shares.values())); // of a word that is not listed
  const rows = words.map((word) => {
    const share = shares.get(word), figure = share === undefined ? "< " + percent(most) : percent(share);
    return { name: choiceSpan(word), share: share ?? 0, figure };
  });
  const rest = 1 - words.reduce((sum, word) => sum + (shares.get(word) ?? 0), 0);
  showBars(byId("probe-bars"), [...rows, ...restRow(rest)]);
  byId("probe-step").setAttribute("aria-valuetext", say("atStep", { step }));
  byId("probe-value").textContent = probeLoss(step, bits);
}

function probeLoss(step, bits) {
  if (bits !== null) return say("probeValidation", { step, bits: bits.toFixed(3) });
  const i = probe.curve?.steps.findIndex((one) => one >= step) ?? -1;
  return i < 0 ? say("atStep", { step }) : say("probeTraining", { step, bits: probe.curve.training[i].toFixed(3) });
}
byId("probe-step").addEventListener("input", showProbePoint);
