// The page around the model: text, next words, chat and the record. The model itself runs in a worker.
const RUN_TOKENS = 200; // of one click on Run
const settingNames = ["temperature", "topP", "minP"];
const settings = () => Object.fromEntries(settingNames.map((name) => [name, Number(byId(name).value)]));
const clickable = (click, attributes, ...children) => {
  const node = element("button", { type: "button", ...attributes }, ...children);
  node.addEventListener("click", click);
  return node;
};
const announce = (text) => { byId("announcement").textContent = text; };

// ---- the worker

const worker = new Worker(URL.createObjectURL(new Blob([byId("worker").textContent], { type: "text/javascript" })));
const receivers = new Map(); // number of a request -> what receives its answers
let lastRequest = 0;

// Sends a request, and returns its number; `receive` is called with each answer, the last of which is `done`.
function request(type, body, receive = () => {}) {
  receivers.set(++lastRequest, receive);
  worker.postMessage({ id: lastRequest, type, ...body });
  return lastRequest;
}
worker.onmessage = ({ data: answer }) => {
  const receive = receivers.get(answer.id);
  if (answer.done) receivers.delete(answer.id);
  receive?.(answer);
  if (answer.error) showProblem(say(...answer.error));
  if (answer.done && answer.id === lastNext) openPanel().setAttribute("aria-busy", "false");
};
worker.onerror = (event) => showProblem(say("failed", { error: event.message }));

function showProblem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

// ---- the text

let state = { text: "", ids: null, prefix: 0 }; // `ids` are the tokens if the model wrote the text, null if it was typed
let shown = { ids: [], prefix: 0, labels: [] }; // the tokens of the text, as the model reads them
const undoable = []; // earlier states
let lastNext = 0; // number of the last request for what comes next

function setState(next) {
  state = next;
  const box = byId("text");
  if (box.value !== state.text) {
    box.value = state.text;
    box.scrollTop = box.scrollHeight;
  }
  box.placeholder = state.ids ? say("answerHere") : "";
  refresh();
}
const setText = (text) => setState({ text, ids: null, prefix: 0 });
function keepForUndo() {
  undoable.push(state);
  byId("undo").disabled = false;
}
function undo() {
  const before = undoable.pop();
  byId("undo").disabled = !undoable.length;
  if (before) setState(before);
}

// Asks for what the open tab shows, after any change.
function refresh() {
  const panel = openPanel(), ask = { write: refreshNext, inside: refreshInside, compare: refreshCompare }[panel.id];
  showProblem("");
  if (!ask) return;
  setBusy(false);
  lastNext = ask();
  panel.setAttribute("aria-busy", "true");
}
function refreshNext() {
  byId("alternatives").hidden = true;
  return request("next", { ...state, settings: settings(), unit: byId("unit").value }, (answer) => {
    if (answer.tokens) showTokens(answer.tokens);
    if (answer.choices) showNext(answer);
  });
}

function showNext({ choices, rest }) {
  const rows = choices.map(({ text: name, added, continues, probability }) => {
    const label = name === "<end>" ? element("span", {}, say("end")) : tokenSpan((continues ? "…" : "") + name);
    const add = () => { keepForUndo(); setText(state.text + added); announce(say("added", { text: readable(added) })); };
    const node = added ? clickable(add, { class: "choice" }, label) : label;
    return [node, percent(probability), Math.min(1, probability), ""];
  });
  if (rest >= 0.0005) rows.push([element("span", {}, say("rest")), percent(rest), rest, "rest"]);
  const focused = [...byId("next").querySelectorAll("button")].indexOf(document.activeElement);
  showBars(byId("next"), rows);
  if (focused >= 0) (byId("next").querySelectorAll("button")[focused] ?? byId("text")).focus();
}

function generate(count) {
  if (byId("step").disabled) return;
  keepForUndo();
  const start = state, box = byId("text");
  let added = 0, ended = false, next = start;
  setBusy(true);
  request("generate", { ...start, settings: settings(), count }, ({ piece, ids, prefix, end, done }) => {
    if (state !== start) return; // the text was changed meanwhile
    if (ids) {
      next = { text: next.text + piece, ids, prefix };
      box.value = next.text;
      box.scrollTop = box.scrollHeight;
      added++;
    }
    ended ||= Boolean(end);
    if (!done) return;
    const written = next.text.slice(start.text.length);
    const result = added === 1 ? say("added", { text: readable(written) }) : say("finished", { count: added });
    announce(ended ? `${result} ${say("ended")}` : result);
    setState(next);
  });
}
function setBusy(busy) {
  for (const id of ["step", "run"]) byId(id).disabled = busy;
  byId("stop").disabled = !busy;
}
const stop = () => worker.postMessage({ id: ++lastRequest, type: "stop" });

byId("text").addEventListener("input", () => setText(byId("text").value));
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate(event.shiftKey ? RUN_TOKENS : 1);
});
byId("step").addEventListener("click", () => generate(1));
byId("run").addEventListener("click", () => generate(RUN_TOKENS));
byId("stop").addEventListener("click", stop);
byId("undo").addEventListener("click", undo);
byId("unit").addEventListener("change", refresh);
for (const name of settingNames) byId(name).addEventListener("input", showSettings);
function showSettings() {
  for (const name of settingNames) byId(name + "-value").textContent = Number(byId(name).value).toFixed(2);
  refresh();
}
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());

// ---- the tokens of the text, and what else could have stood in their places

function showTokens(tokens) {
  shown = tokens;
  byId("strip").replaceChildren(...tokens.labels.map((label, i) => {
    const attributes = { class: "token", tabindex: i ? -1 : 0, "aria-label": readable(label) };
    return clickable(() => showAlternatives(i), attributes, withFaintMarks(label));
  }));
}

function showAlternatives(index) {
  const position = shown.prefix + index, label = readable(shown.labels[index]);
  [...byId("strip").children].forEach((node, i) => node.setAttribute("aria-pressed", String(i === index)));
  request("alternatives", { ids: shown.ids, prefix: shown.prefix, position }, ({ choices, rank }) => {
    if (!choices) return;
    const bits = (-Math.log2(choices.find((one) => one.isChosen)?.probability)).toFixed(2).replace("Infinity", "∞");
    byId("alternatives-title").textContent = say("alternativesTitle", { token: label });
    byId("alternatives-hint").textContent = choices.length ? say("alternativesHint", { token: label, rank, bits }) : say("noAlternatives");
    showBars(byId("alternatives-bars"), choices.map((one) => {
      const choose = () => {
        keepForUndo();
        setState({ text: one.text, ids: one.ids, prefix: shown.prefix });
        byId("text").focus();
      };
      const node = !one.canChoose ? element("b", {}, tokenSpan(one.label)) : clickable(choose, { class: "choice" }, tokenSpan(one.label));
      return [node, percent(one.probability), one.probability, one.isChosen ? "" : "rest"];
    }));
    byId("alternatives").hidden = false;
  });
}
byId("strip").addEventListener("keydown", (event) => moveFocus(event, byId("strip")));

// Arrow keys move the focus among the children of a node, of which one can be reached with Tab.
function moveFocus(event, node, kind = "*") {
  const all = [...node.children].filter((child) => !child.hidden && child.matches(kind)), i = all.indexOf(document.activeElement);
  const target = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: all.length - 1 }[event.key];
  if (i < 0 || !all[target]) return null;
  for (const child of all) child.tabIndex = child === all[target] ? 0 : -1;
  all[target].focus();
  event.preventDefault();
  return all[target];
}

// ---- chat

const messages = []; // the user wrote the first, and each second one

function showMessages() {
  byId("messages").replaceChildren(...messages.map((content, i) => {
    const speaker = element("b", {}, say(i % 2 ? "model" : "you"));
    return element("p", { class: i % 2 ? "from-model" : "from-user", dir: "auto" }, speaker, element("span", {}, content || say("waiting")));
  }));
  byId("chat-undo").disabled = byId("look-inside").disabled = !messages.length;
}
let turn = 0; // the answer that is being written
function setAnswering(answering) {
  byId("send").disabled = answering;
  byId("chat-stop").disabled = !answering;
  byId("messages").setAttribute("aria-busy", String(answering)); // a screen reader reads the answer when it is complete
}
function takeBack() {
  turn++;
  setAnswering(false);
  byId("message").value = messages.splice(-2)[0];
  showMessages();
}
function send() {
  const content = byId("message").value.trim(), own = turn + 1;
  if (!content || byId("send").disabled) return;
  turn = own;
  byId("message").value = "";
  messages.push(content, "");
  showProblem("");
  setAnswering(true);
  showMessages();
  request("chat", { messages: messages.slice(0, -1), settings: settings() }, ({ answer, done, error }) => {
    if (own !== turn) return; // it was taken back
    if (error) return takeBack();
    if (answer !== undefined) messages[messages.length - 1] = answer;
    if (done) setAnswering(false);
    showMessages();
  });
}
byId("send").addEventListener("click", send);
byId("chat-stop").addEventListener("click", stop);
byId("chat-undo").addEventListener("click", () => {
  stop();
  takeBack();
});
// Opens the prediction of the first token of the last answer.
byId("look-inside").addEventListener("click", () => {
  stop();
  request("conversation", { messages: messages.slice(0, -1) }, ({ ids }) => {
    if (!ids) return;
    keepForUndo();
    setState({ text: "", ids, prefix: ids.length });
    openTab(byId("tab-inside"));
    byId("tab-inside").focus();
  });
});
byId("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});

// ---- the record

function showRecord() {
  const { rows, plan, verdict, curve, samples, prompt, probe: predictions } = data.record;
  showVerdict(verdict);
  showPairs("record", rows);
  showPairs("plan", plan);
  byId("plan-section").hidden = !plan.length;
  showSamples(samples, prompt);
  showLosses(curve && { ...curve, summary: recordValue("curve", curve.summary) });
  showProbe(predictions, curve);
}

// ---- tabs and languages

const tabs = [...byId("tabs").children];
const openPanel = () => document.querySelector("[role=tabpanel]:not([hidden])");
function openTab(tab) {
  for (const other of tabs) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
  byId(tab.id === "tab-chat" ? "chat-settings" : "write-settings").append(byId("settings"));
  byId(`${tab.getAttribute("aria-controls")}-text`)?.append(byId("text-field"));
  if (tab.id === "tab-compare") byId("other").value ||= state.text; // to change a word of it
  refresh();
  if (tab.id === "tab-record") showRecord(); // the chart is as wide as the window
}
for (const tab of tabs) tab.addEventListener("click", () => openTab(tab));
byId("tabs").addEventListener("keydown", (event) => {
  const tab = moveFocus(event, byId("tabs"));
  if (tab) openTab(tab);
});

function showTexts() {
  translatePage();
  byId("summary").textContent = say("summary", { parameters: data.parameters, weights: data.dtype });
  showMessages();
  showRecord();
  showHeadChoices();
  showParts();
}
byId("language").addEventListener("click", () => {
  language = language === "ja" ? "en" : "ja";
  showTexts();
  refresh();
});

// ---- start

request("open", { data, weights: byId("weights").textContent }, ({ error }) => {
  if (error) return;
  byId("send").disabled = false;
  document.documentElement.dataset.ready = "";
});
byId("weights").remove();
byId("tab-chat").hidden = !data.chat;
if (data.chat) { // as llm chat chooses its words
  byId("temperature").value = 0.8;
  byId("minP").value = 0.05;
}
showTexts();
showSettings();
setText(data.start.text);
openTab(byId(`tab-${data.chat && data.start.view === "write" ? "chat" : data.start.view}`));
