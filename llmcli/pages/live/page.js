// The page around the model: text, next words, tabs. The model itself is run by `program`: a worker in this page (local.js), or a
// server (http.js). It gets {id, type, ...}, and answers with any number of {id, ...}, the last of which has `done`:
//   open {model} -> {facts}: about the model, if they are not in the page; the rest is about the open model
//   next {text, ids, prefix, written, settings, unit} -> {tokens}, {choices, rest}: what may follow a text; better ones replace the first
//   generate {text, ids, prefix, written, settings, count} -> {piece, ids, prefix}, {end}
//   inside {text, ids, prefix, written, without, target} -> {pairs, ...}, {labels, lens, ...}, {pairs, ...}, {effects}
//   compare {texts, without} -> {lenses}, {pairs}
//   chat {messages, settings} -> {content, ids, prefix}, {dropped}: the number of turns that did not fit; {end}
//   alternatives {ids, prefix, written, position} -> {choices, rank}: what else could have stood in the place of a token
//   attention {position} -> {attention}: of another token than the last of the text that `inside` was asked about
//   color {ids, prefix, written, kind} -> {marks, legend}
//   stop: ends the last of next, generate, inside, compare and chat, as a new one of them does
const RUN_TOKENS = 200; // of one click on Run
const FULL_COLOR_BITS = 8; // a token that was less likely has the full color
const clickable = (click, attributes, ...children) => {
  const node = element("button", { type: "button", ...attributes }, ...children);
  node.addEventListener("click", click);
  return node;
};
// Enables or disables a button. A browser takes the focus from one that is disabled: the node `next` gets it, or the button gets it
// back when it is enabled again.
let unfocused = null;
function setDisabled(id, isDisabled, next) {
  const node = byId(id);
  if (isDisabled && document.activeElement === node) {
    if (next) byId(next).focus();
    else unfocused = node;
  }
  node.disabled = isDisabled;
  if (isDisabled || unfocused !== node) return;
  unfocused = null;
  if (document.activeElement === document.body || document.activeElement.disabled) node.focus();
}
const announce = (text) => { byId("announcement").textContent = text; };

// ---- the run program

const receivers = new Map(); // number of a request -> what receives its answers
let lastRequest = 0;

// Sends a request, and returns its number; `receive` is called with each answer, the last of which is `done`.
function request(type, body, receive = () => {}, worker = program) {
  receivers.set(++lastRequest, receive);
  worker.postMessage({ id: lastRequest, type, ...body });
  return lastRequest;
}
program.onmessage = ({ data: answer }) => {
  const receive = receivers.get(answer.id);
  if (answer.done) receivers.delete(answer.id);
  receive?.(answer);
  if (answer.error) showProblem(say(...answer.error));
  if (answer.done && answer.id === lastNext) openPanel().setAttribute("aria-busy", "false");
};
program.onerror = (event) => showProblem(say("failed", { error: event.message }));

// ---- the text

// `ids` are the tokens if the model wrote the last `written` of them, null if the text was typed. What it wrote does not count in its
// n-gram cache, however it wrote it: in one run, or token by token.
let state = { text: "", ids: null, prefix: 0, written: 0 };
let shown = { ids: [], prefix: 0, written: 0, labels: [] }; // the tokens of the text, as the model reads them
const undoable = []; // earlier states
let isTyping = false; // the last change was typed: Undo takes back all that was typed in a row
let lastNext = 0; // number of the last request for what comes next

function setState(next) {
  state = { ...next }; // an answer to a request that was sent before belongs to another state
  isTyping = false;
  const box = byId("text");
  if (box.value !== state.text) {
    box.value = state.text;
    box.scrollTop = box.scrollHeight;
  }
  box.placeholder = state.ids ? say("answerHere") : "";
  const examples = data.examples?.prompts ?? [];
  byId("examples").hidden = Boolean(state.ids) || !["", data.start.text, ...examples].includes(state.text);
  examples.forEach((text, i) => byId("examples").children[i].setAttribute("aria-pressed", text === state.text));
  refresh();
}
const setText = (text) => setState({ text, ids: null, prefix: 0, written: 0 });
function keepForUndo() {
  undoable.push(state);
  byId("undo").disabled = false;
}

// Asks for what the open tab shows, after any change.
function refresh() {
  const panel = openPanel(), ask = { write: refreshNext, inside: refreshInside, compare: refreshCompare }[panel.id];
  showProblem("");
  if (!ask) return;
  byId("outside-chat").hidden = !data.chat || Boolean(state.ids);
  setBusy(false);
  lastNext = ask();
  panel.setAttribute("aria-busy", "true");
}
function refreshNext() {
  byId("alternatives").hidden = true;
  const { written } = state;
  return request("next", { ...state, settings: settings(), unit: byId("unit").value }, (answer) => {
    if (answer.tokens) showTokens({ ...answer.tokens, written });
    if (answer.choices) showNext(byId("next"), answer);
  });
}

function showNext(list, { choices, rest }, canAdd = true) {
  const rows = choices.map(({ text, added, continues, probability: share }) => {
    const label = choiceSpan(text, continues);
    const add = () => { keepForUndo(); setText(state.text + added); announce(say("added", { text: readable(added) })); };
    return { name: added && canAdd ? clickable(add, { class: "choice" }, label) : label, share };
  });
  showBars(list, [...rows, ...restRow(rest)]);
}

function generate(count) {
  if (byId("step").disabled) return;
  keepForUndo();
  const start = state, box = byId("text");
  let next = start, ended = false;
  setBusy(true);
  request("generate", { ...start, settings: settings(), count }, ({ piece, ids, prefix, count: tokens = 1, end, done }) => {
    if (state !== start) return; // the text was changed meanwhile
    if (ids) {
      next = { text: next.text + piece, ids, prefix, written: next.written + tokens };
      box.value = next.text;
      box.scrollTop = box.scrollHeight;
    }
    ended ||= end === "stop";
    if (!done) return;
    const written = next.text.slice(start.text.length), added = next.written - start.written;
    const result = added === 1 ? say("added", { text: readable(written) }) : say("finished", { count: added });
    announce(ended ? `${result} ${say("ended")}` : result);
    setState(next);
  });
}
const runLength = () => settings().max_tokens ?? RUN_TOKENS;
function setBusy(busy) {
  byId("stop").disabled = !busy;
  for (const id of ["step", "run"]) setDisabled(id, busy);
}
const stop = () => program.postMessage({ id: ++lastRequest, type: "stop" });

byId("text").addEventListener("input", () => {
  if (!isTyping) keepForUndo();
  setText(byId("text").value);
  isTyping = true;
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate(event.shiftKey ? runLength() : 1);
});
byId("step").addEventListener("click", () => generate(1));
byId("run").addEventListener("click", () => generate(runLength()));
byId("stop").addEventListener("click", stop);
byId("undo").addEventListener("click", () => {
  setState(undoable.pop());
  setDisabled("undo", !undoable.length, "text");
});
byId("unit").addEventListener("change", refresh);
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());

// ---- the tokens of the text, and what else could have stood in their places

function showTokens(tokens) {
  const nodes = [...byId("strip").children], before = shown.labels;
  shown = tokens;
  let same = 0; // tokens at the beginning that stay: thousands of new ones would be slow to draw at each keystroke
  while (same < nodes.length && before[same] === tokens.labels[same]) same++;
  nodes.slice(same).forEach((node) => node.remove());
  nodes.slice(0, same).forEach((node, i) => {
    node.tabIndex = i ? -1 : 0;
    node.removeAttribute("aria-pressed");
  });
  byId("strip").append(...tokens.labels.slice(same).map((label, i) => {
    const attributes = { class: "token", tabindex: same + i ? -1 : 0, "aria-label": readable(label) };
    return clickable(() => showAlternatives(same + i), attributes, withFaintMarks(label));
  }));
  byId("strip").scrollTop = byId("strip").scrollHeight; // the end, as of the text
  color();
}

// Colors the tokens of the text, by how likely each was, or by what else the run program can tell.
let lastColors = 0; // number of the last request
function color() {
  const kind = byId("coloring").value, nodes = [...byId("strip").children];
  byId("coloring-legend").textContent = "";
  if (!kind || !shown.ids.length) return nodes.forEach((node) => mark(node));
  const { ids, prefix, written } = shown;
  lastColors = request("color", { ids, prefix, written, kind }, ({ id, marks, legend }) => {
    if (id !== lastColors || !marks) return;
    nodes.forEach((node, i) => mark(node, marks[i]));
    byId("coloring-legend").textContent = say(...legend);
  });
}
function mark(node, found = null) {
  const { probability, share = Math.min(1, -Math.log2(probability) / FULL_COLOR_BITS), hue = 24, note = "" } = found ?? { share: 0 };
  node.style.setProperty("--share", share);
  node.style.setProperty("--hue", hue);
  node.title = probability === undefined ? note : percent(probability);
}
byId("coloring").addEventListener("change", color);

function showAlternatives(index) {
  const { ids, prefix, written } = shown, position = prefix + index, label = readable(shown.labels[index]);
  [...byId("strip").children].forEach((node, i) => node.setAttribute("aria-pressed", String(i === index)));
  request("alternatives", { ids, prefix, written, position }, ({ choices, rank }) => {
    if (!choices) return;
    const chosen = choices.find(({ id }) => id === ids[position]);
    const bits = (-Math.log2(chosen?.probability)).toFixed(2).replace("Infinity", "∞");
    byId("alternatives-title").textContent = say("alternativesTitle", { token: label });
    byId("alternatives-hint").textContent = choices.length ? say("alternativesHint", { token: label, rank, bits }) : say("noAlternatives");
    showBars(byId("alternatives-bars"), choices.map(({ id, label: other, text, probability: share }) => {
      const choose = () => {
        keepForUndo();
        const own = Math.max(0, position + 1 - (ids.length - written)); // tokens that the model wrote
        setState({ text, ids: [...ids.slice(0, position), id], prefix, written: own });
        byId("text").focus();
      };
      const token = tokenSpan(other), isFixed = id === chosen.id || text === null; // a control token cannot be chosen
      const name = isFixed ? element("b", {}, token) : clickable(choose, { class: "choice" }, token);
      return { name, share, kind: id === chosen.id ? "" : "rest" };
    }));
    byId("alternatives").hidden = false;
  });
}
byId("strip").addEventListener("keydown", (event) => moveFocus(event, [...byId("strip").children]));

// Arrow keys move the focus among some nodes in rows of `width`, of which one can be reached with Tab.
function moveFocus(event, nodes, width = nodes.length) {
  const i = nodes.indexOf(document.activeElement), first = i - (i % width);
  const inRow = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: first, End: first + width - 1 };
  const target = nodes[{ ...inRow, ArrowDown: i + width, ArrowUp: i - width }[event.key]];
  if (i < 0 || !target) return;
  for (const node of nodes) node.tabIndex = node === target ? 0 : -1;
  target.focus();
  event.preventDefault();
}

// ---- the record

function showRecord() {
  showPairs("record", data.record.rows);
  byId("plan-section").hidden = !data.record.plan.length;
  showRun(data.record);
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
  byId(`${tab.getAttribute("aria-controls")}-curve`)?.append(byId("curve"));
  byId("text").scrollTop = byId("text").scrollHeight;
  if (tab.id === "tab-compare") byId("other").value ||= state.text; // to change a word of it
  refresh();
  if (tab.id === "tab-record") showRecord(); // the chart is as wide as the window
}
for (const tab of tabs) tab.addEventListener("click", () => openTab(tab));
byId("tabs").addEventListener("keydown", (event) => {
  moveFocus(event, tabs.filter((tab) => !tab.hidden));
  if (event.defaultPrevented) openTab(document.activeElement);
});

function showTexts() {
  byId("strip").replaceChildren(); // its names are in the language, too
  if (!data.record) return; // no model is open
  byId("summary").textContent = say(data.isServed ? "servedSummary" : "summary", { parameters: data.parameters, weights: data.dtype });
  const before = byId("coloring").value;
  byId("coloring").replaceChildren(...["", ...(data.colorings ?? ["probability"])].map((kind) => element("option", { value: kind }, say(kind || "noColors"))));
  byId("coloring").value = before;
  showMessages();
  showRecord();
  showHeadChoices();
  showParts();
}
onLanguage(() => {
  showTexts();
  if (data.record && "ready" in document.documentElement.dataset) refresh();
});

// Texts to begin with, as buttons. The focus of a button that goes with its choice goes to the text field.
function showExamples(id, texts, field, choose) {
  byId(id).replaceChildren(...(texts ?? []).map((text) => clickable((event) => {
    const hasFocus = event.target.matches(":focus-visible");
    choose(text);
    if (hasFocus && !event.target.isConnected) byId(field).focus();
  }, { dir: "auto" }, visibleWithSpaces(text))));
}

// ---- the open model

// What was typed and written survives a reload; it is lost when the tab is closed.
const storageName = () => `llm.${location.pathname}.${data.model ?? ""}.${JSON.stringify(data.start)}`;
const FIELDS = ["message", "other", "unit", "coloring"];
function remember() {
  const fields = Object.fromEntries(FIELDS.map((id) => [id, byId(id).value]));
  const tab = openPanel().getAttribute("aria-labelledby");
  store(storageName(), { state, messages, fields, sliders: sliders(), off: [...off], tab });
}
window.addEventListener("pagehide", () => data.record && remember());

// Opens a model: the one in the page, or the server's with this name, or its first.
function openModel(model) {
  if (data.record && data.isServed) remember();
  delete document.documentElement.dataset.ready;
  request("open", { model, ...openingOf() }, ({ facts, error, done }) => {
    if (facts) Object.assign(data, facts);
    if (!done || error) return;
    showModel();
    document.documentElement.dataset.ready = "";
  });
}
function showPrompts() {
  showExamples("examples", data.examples?.prompts, "text", (text) => {
    if (text !== state.text) keepForUndo();
    setText(text);
  });
}
function showModel() {
  const before = remembered(storageName()) ?? {}, isChat = Boolean(data.chat);
  if (data.isServed) byId("title").textContent = document.title = data.model;
  byId("models").replaceChildren(...(data.models ?? []).map((name) => element("option", { value: name, ...(name === data.model ? { selected: "" } : {}) }, name)));
  byId("models-label").hidden = (data.models ?? []).length < 2;
  byId("more").hidden = !data.isServed;
  byId("tab-chat").hidden = !isChat;
  undoable.length = 0;
  byId("undo").disabled = true;
  showSettings(before.sliders ?? (isChat ? CHAT_SLIDERS : WRITE_SLIDERS));
  resetInside(before.off ?? data.start.without);
  resetChat(before.messages);
  showPrompts();
  showTexts();
  const fields = before.fields ?? { message: "", other: data.start.compare };
  for (const [id, value] of Object.entries(fields)) byId(id).value = value;
  setState(before.state ?? { text: data.start.text, ids: null, prefix: 0, written: 0 });
  openTab(byId(before.tab ?? `tab-${isChat && data.start.view === "write" ? "chat" : data.start.view}`));
}
byId("models").addEventListener("change", () => openModel(byId("models").value));

if (data.record || !data.training) openModel();
