// The tab Train: a text becomes a model, in a trainer: a worker with the program of `program`. What it is asked,
// and answers, is in trainer.js. Each text has a trainer of its own.
const MAX_WORKERS = 8, MAX_FILE_BYTES = 1_000_000, TYPING_PAUSE = 400; // milliseconds without a keystroke, after which a text is read
const SAMPLE_TOKENS = 80;
const toUtf8 = (text) => new TextEncoder().encode(text);
const MAX_PROBE_POINTS = 24; // of more, every second one is kept
let source = null; // of the text: {bytes, name} of a file or an example; null if it was typed
let draft = null; // for the next training: {trainer, next, facts, shapes, ...}; without facts while the text `next` is read
let run = null; // {trainer, title, phase, progress, model, opened, probe}; the other tabs show the model `opened`
let typing = 0; // timer
let isSaved = true, isPredicting = false;
const train = (name) => byId(`train-${name}`);
// As `request`, until the answers are done.
const answersTo = (type, body, receive, worker) => new Promise((resolve) => {
  request(type, body, (answer) => {
    receive(answer);
    if (answer.done) resolve();
  }, worker);
});

// ---- workers

function newTrainer() {
  const worker = newWorker();
  worker.onmessage = ({ data: answer }) => program.onmessage({ data: answer.error ? { ...answer, error: shownError(answer.error) } : answer });
  worker.onerror = (event) => {
    event.preventDefault();
    if (run?.trainer === worker) endTraining("isBroken");
    else endReading();
    showProblem(say(...shownError(["failed", { error: event.message }])));
  };
  return worker;
}
function shownError([name, values = {}]) {
  const isMemory = /memory|allocat|array (buffer|length)/i.test(values.error ?? ""); // as browsers say it
  return isMemory ? ["outOfMemory"] : [name, values];
}

// ---- the text

// A typed text is named after its first words, so that a class has pages of different names.
const typedName = (text) => `${[...(text.slice(0, 200).match(/[\p{L}\p{M}\p{N}]+/gu) ?? ["text"]).slice(0, 3).join(" ")].slice(0, 30).join("")}.txt`;

// Has a text read, and its training planned.
async function prepare(next = source) {
  const typed = train("text").value, bytes = next?.bytes ?? toUtf8(typed), name = next?.name ?? typedName(typed);
  const hadPlan = Boolean(draft?.facts);
  clearTimeout(typing);
  endReading();
  showProblem("");
  if (!bytes.length && !next) return;
  const own = draft = { trainer: newTrainer(), next };
  showTraining();
  const body = { bytes: bytes.slice().buffer, name, kind: train("kind").value, training: data.training };
  await answersTo("prepare", body, (answer) => {
    if (answer.error) endReading();
    if (answer.error && hadPlan && next !== source) prepare(); // of the text that stays
    if (!answer.facts) return;
    Object.assign(own, answer);
    if (next) [source, train("text").value] = [next, new TextDecoder(own.facts.encoding).decode(bytes)];
    train("size").max = own.shapes.length - 1;
    for (const [name, value] of Object.entries({ size: own.planned, seconds: own.seconds })) {
      if (!train(name).dataset.isChosen) train(name).value = value;
    }
    showTraining();
  }, own.trainer);
}
function endReading() {
  draft?.trainer?.terminate();
  draft = null;
  showTraining();
}
async function readFile(file) {
  try {
    const { size } = file;
    if (size > MAX_FILE_BYTES) showProblem(say("textTooLarge", { size, maximum: MAX_FILE_BYTES }));
    else prepare({ bytes: new Uint8Array(await file.arrayBuffer()), name: file.name });
  } catch { showProblem(say("textUnreadable")); } // a folder, or a file that is gone
}

// ---- training

async function start() {
  if (!draft?.trainer || !draft.facts) await prepare(); // again, or at once after a keystroke
  if (!draft?.trainer || !draft.facts) return;
  run?.trainer.terminate();
  const { trainer, facts, shapes } = draft, title = facts.name.replace(/\.[^.]*$/, ""), probe = { prompt: "", points: [] };
  const own = run = { trainer, title, phase: "isTraining", progress: null, model: null, opened: null, probe };
  draft.trainer = null;
  isSaved = false;
  showProblem("");
  const settings = {
    shape: shapes[train("size").value], seconds: Number(train("seconds").value), rate: rateFactor(),
    helpers: Math.min(MAX_WORKERS, navigator.hardwareConcurrency || 1) - 1,
    program: byId("worker").textContent,
  };
  request("train", settings, ({ progress, model, done, error }) => {
    if (own !== run) return;
    Object.assign(own, progress && { progress }, model && { model });
    if (model) isSaved = false; // also after a model of this run was saved
    if (done) return endTraining(error ? "isBroken" : "isDone");
    showTraining();
    if (model) openNewest();
  }, trainer);
  showTraining();
  train("pause").focus();
}
function endTraining(phase) {
  run.phase = phase;
  if (phase === "isBroken") run.trainer.terminate(); // otherwise it saves its model
  showTraining();
  openNewest();
}
function pauseOrGoOn() {
  const isPaused = run.phase === "isPaused";
  run.phase = isPaused ? "isTraining" : "isPaused";
  request(isPaused ? "resume" : "pause", {}, () => {}, run.trainer);
  showTraining();
}

// ---- the newest model

const openTabName = () => openPanel().getAttribute("aria-labelledby").slice("tab-".length);
const isHere = () => ["train", "record"].includes(openTabName()); // in the other tabs somebody looks at a model
const probeOf = ({ probe }) => (probe.points.length ? probe : null);

// What a page shows of the newest model: it begins with the prompt.
function newestFacts() {
  const { data: facts } = run.model, text = train("prompt").value || facts.start.text, prompts = [...new Set([text, ...facts.examples.prompts])];
  return { ...facts, record: { ...facts.record, probe: probeOf(run) }, start: { ...facts.start, text }, examples: { ...facts.examples, prompts } };
}

// Opens the newest model for all tabs, but not while training runs and somebody looks at another; then shows it here.
function openNewest() {
  if (!run?.model || run.opened === run.model || (run.phase === "isTraining" && !isHere())) return showOpened();
  const own = run, isFirst = !own.opened, kept = state.text === data.start?.text ? "" : state.text;
  own.opened = run.model;
  Object.assign(data, newestFacts());
  showPrompts();
  Object.assign(data.start, { view: openTabName().replace("chat", "write"), run: Date.now() }); // nothing is remembered of another model
  request("open", { data, weights: run.model.weights }, ({ error }) => {
    if (error || run !== own) return;
    if (isFirst) {
      for (const tab of tabs) tab.hidden = false;
      showModel();
      if (kept) setText(kept);
      train("prompt").value ||= data.start.text;
    } else if (!isHere()) refresh();
    showOpened();
  });
}

// Shows the open model here: the chart, what follows the prompt, and a sample.
function showOpened() {
  if (!run?.opened || !isHere()) return;
  byId("title").textContent = document.title = run.title;
  byId("summary").textContent = say("trainedSummary", data);
  data.record.probe = probeOf(run);
  if (openTabName() === "record") showRecord();
  else showLosses(data.record.curve);
  if (!isPredicting) predict(); // else the next model waits: its request would end the one before
}
async function predict() {
  const { probe, opened, progress } = run, text = train("prompt").value, prompt = { text, ids: null, prefix: 0, written: 0 };
  let listed = [], sample = "";
  isPredicting = true;
  await answersTo("next", { ...prompt, settings: WRITE_SLIDERS, unit: "words" }, (answer) => {
    if (!answer.choices) return;
    listed = answer.choices.map(({ text: word, probability }) => [word, probability]);
    showNext(train("bars"), answer, false);
  });
  if (listed.length && progress) addProbePoint(probe, text, [progress.step, progress.validation, listed]);
  if (isHere()) {
    const body = { ...prompt, settings: CHAT_SLIDERS, count: SAMPLE_TOKENS };
    await answersTo("generate", body, ({ piece = "" }) => { sample += piece; });
    train("sample").replaceChildren(element("i", {}, text), sample);
  }
  isPredicting = false;
  if (run.opened !== opened || train("prompt").value !== text) showOpened();
}
function addProbePoint(probe, prompt, point) {
  if (prompt !== probe.prompt) Object.assign(probe, { prompt, points: [] });
  probe.points = [...probe.points.filter(([step]) => step !== point[0]), point];
  if (probe.points.length > MAX_PROBE_POINTS) probe.points = probe.points.filter((_, i) => i % 2 === 0);
}

// ---- what the tab shows

const rateFactor = () => 2 ** Number(train("rate").value);
const modelSize = ({ layers, width }) => say(layers === 1 ? "modelSizeOne" : "modelSize", { layers, width });
function showTraining() {
  const put = (name, text) => { if (train(name).textContent !== text) train(name).textContent = text; }; // else it is read aloud again
  const phase = run?.phase, isTraining = phase === "isTraining", rate = Number(rateFactor().toPrecision(2));
  put("plan", draft ? (draft.facts ? planText(draft) : say("reading")) : "");
  put("size-value", draft?.facts ? modelSize(draft.shapes[train("size").value]) : "");
  put("seconds-value", say("secondsValue", { seconds: train("seconds").value }));
  put("rate-value", say(rate === 1 ? "planned" : "rateValue", { rate }));
  put("start", say(run ? "startAgain" : "start"));
  put("pause", say(phase === "isPaused" ? "goOn" : "pause"));
  setDisabled("train-start", isTraining || !train("text").value, "train-pause");
  setDisabled("train-pause", !isTraining && phase !== "isPaused", "train-start");
  setDisabled("save-page", !run?.model);
  setDisabled("save-model", !run?.model || phase === "isBroken" || run.isSaving);
  byId("save-model").textContent = say(run?.isSaving ? "saving" : "saveModel");
  train("background").hidden ||= !isTraining;
  train("live").hidden = !run;
  if (!run) return;
  put("phase", say(phase));
  put("figures", run.progress ? progressText(run.progress) : "");
  train("progress").value = run.progress?.share ?? 0;
}
function progressText({ step, share, tokensPerSecond, training, validation }) {
  const values = { step, speed: Math.round(tokensPerSecond), share: `${Math.floor(100 * share)}%` };
  const figures = say("trainFigures", { ...values, training: training.toFixed(3) });
  return validation === null ? figures : say("figuresValidation", { figures, validation: validation.toFixed(3) });
}
function planText({ facts, shapes, planned, seconds }) {
  const reason = say("planReason", { size: facts.bytes }), model = modelSize(shapes[planned]);
  return `${say("textFacts", facts)} ${say("planText", { model, seconds, reason })}`;
}
function showTrainTexts() {
  if (!data.record) byId("summary").textContent = say("trainSummary");
  showTraining();
  showOpened();
}

// ---- files

function saveFile(parts, type, name) {
  const link = element("a", { href: URL.createObjectURL(new Blob(parts, { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // it is read after the click
  isSaved = true;
}
const base64 = (buffer) => btoa(Array.from(new Uint8Array(buffer), (byte) => String.fromCharCode(byte)).join(""));
// No text can end the element, as in json_for_script of template.py.
const jsonForScript = (value) => JSON.stringify(value).replace(/[<>&\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

// Saves this page as it was opened, with the newest model inside.
function savePage() {
  const page = pristine.cloneNode(true), { title } = run;
  page.querySelector("#data").textContent = jsonForScript({ ...newestFacts(), training: data.training });
  page.querySelector("#weights").textContent = base64(run.model.weights);
  for (const node of page.querySelectorAll("title, #title")) node.textContent = title;
  saveFile(["<!DOCTYPE html>\n", page.outerHTML, "\n"], "text/html", `${title}.html`);
}
function saveModel() {
  const own = run;
  own.isSaving = true; // the held-out text is measured first
  request("save", { probe: probeOf(own) }, ({ file }) => {
    own.isSaving = false;
    if (file) saveFile([file], "application/octet-stream", "model.safetensors");
    showTraining();
  }, own.trainer);
  showTraining();
}

// ---- events

train("text").addEventListener("input", () => {
  source = null;
  endReading();
  clearTimeout(typing);
  typing = setTimeout(prepare, TYPING_PAUSE);
});
train("examples").addEventListener("click", ({ target: { dataset: { text: name, prompt } } }) => {
  if (!name) return; // between the buttons
  train("prompt").value = prompt;
  prepare({ bytes: toUtf8(EXAMPLES[name]), name: `${name}.txt` });
});
train("kind").addEventListener("change", () => prepare(draft?.next ?? source)); // also while a text is read
train("choose").addEventListener("click", () => train("file").click());
train("file").addEventListener("change", () => readFile(train("file").files[0]));
for (const type of ["dragover", "drop"]) document.addEventListener(type, (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault(); // the browser would open the file in the place of this page
  if (type === "drop" && openTabName() === "train") readFile(event.dataTransfer.files[0]);
});
for (const name of ["size", "seconds", "rate"]) train(name).addEventListener("input", () => {
  train(name).dataset.isChosen = "yes";
  showTraining();
});
for (const [id, listener] of [["train-start", start], ["train-pause", pauseOrGoOn], ["save-page", savePage], ["save-model", saveModel], ["language", showTrainTexts], ["tabs", openNewest]]) {
  byId(id).addEventListener("click", () => listener());
}
byId("tabs").addEventListener("keydown", openNewest);
train("prompt").addEventListener("input", showOpened);
window.addEventListener("resize", () => openTabName() === "train" && showOpened());
document.addEventListener("visibilitychange", () => { train("background").hidden = run?.phase !== "isTraining"; });
window.addEventListener("beforeunload", (event) => isSaved || event.preventDefault());

if (!data.record) { // the other tabs wait for a model
  for (const tab of tabs) tab.hidden = tab.id !== "tab-train";
  openTab(byId("tab-train"));
  document.documentElement.dataset.ready = "";
}
showTrainTexts();
const textName = `llm.train.${location.pathname}`; // the text survives a reload
window.addEventListener("pagehide", () => store(textName, { text: train("text").value, name: source?.name }));
const { text: kept = "", name: keptName } = remembered(textName) ?? {};
train("text").value = kept;
source = keptName ? { bytes: toUtf8(kept), name: keptName } : null;
if (kept) prepare();
