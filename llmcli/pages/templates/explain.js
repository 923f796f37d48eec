// What a model computes for a prompt: attention arcs of a selected token, predictions, ablation effects.
const { tokens, layers: L, heads: H } = data;
const N = tokens.length;
const MAX_ARCS = 5; // unless all are shown
const MIN_WEIGHT = 0.01; // attention weights below this get no arc
const MAX_LAYERS = 8; // a table shows the last layers, unless all are shown
const MAX_EFFECTS = 24; // with more tokens only the largest effects are shown, half of this number, unless all are
const TRIANGLE = (N * (N + 1)) / 2;
const attention = Uint8Array.from(atob(data.attention), (c) => c.charCodeAt(0)); // [L, H, TRIANGLE], in 1/255
// layer and head count from 1, 0 is the mean; arcs and layers are "" or "all"; a pinned token ignores the pointer
const state = { token: N - 1, layer: 0, head: 0, arcs: "", layers: "", pinned: false };

// The attention weights of the token at `row` on each token up to itself.
function weights(layer, head, row) {
  const sums = new Float64Array(row + 1);
  const layers = layer ? [layer - 1] : [...Array(L).keys()];
  const heads = head ? [head - 1] : [...Array(H).keys()];
  for (const l of layers) for (const h of heads) {
    const start = (l * H + h) * TRIANGLE + (row * (row + 1)) / 2;
    for (let i = 0; i <= row; i++) sums[i] += attention[start + i];
  }
  return sums.map((sum) => sum / (255 * layers.length * heads.length));
}
const selectedWeights = () => weights(state.layer, state.head, state.token);
const descending = (values) => [...values.keys()].sort((a, b) => values[b] - values[a]);
const attentionSource = () => (state.layer ? `layer ${state.layer} of ${L}` : `mean of ${L} layers`) +
  (H === 1 ? ", mean of its heads" : state.head ? `, head ${state.head} of ${H}` : `, mean of ${H} heads`);
const predictions = (depth, position) => data.lens[depth][position].map(([text, share]) => [data.texts[text], share]);
const tokenName = (i) => `token ${i + 1}, ${readable(tokens[i])}`;
const numberedToken = (i) => element("span", { class: "token" },
  element("span", { class: "faint" }, String(i + 1).padStart(String(N).length) + " "), withFaintMarks(tokens[i]));
const wholePercent = (weight) => Math.round(100 * weight) + "%"; // attention is stored in steps of 1/255
const bits = (value, digits = 2) => Math.abs(value).toFixed(digits); // unsigned

const tokenNodes = tokens.map((text, i) => element("div", {
  class: "token", role: "option", id: "token-" + (i + 1), tabindex: -1, "aria-selected": "false",
  "aria-label": `${tokenName(i)}, id ${data.ids[i]}`,
}, element("span", {}, withFaintMarks(text)), element("span", { class: "weight" })));

// ---- the selected token

function select(changes) {
  Object.assign(state, changes);
  tokenNodes.forEach((node, i) => {
    node.setAttribute("aria-selected", String(i === state.token));
    node.tabIndex = i === state.token ? 0 : -1;
  });
  for (const id of ["layer", "head", "arcs"]) byId(id).value = state[id];
  showSelection();
  const fragment = `#token=${state.token + 1}&layer=${state.layer}&head=${state.head}` +
    (state.arcs && "&arcs=all") + (state.layers && "&layers=all");
  if (location.hash !== fragment) history.replaceState(null, "", fragment);
}

function showSelection() {
  const selected = selectedWeights();
  const focusedKey = document.activeElement?.dataset.key; // the tables are rebuilt
  showTokens(selected);
  showArcs(selected);
  showAttention(selected);
  showPrediction();
  showAnnouncement(selected);
  showLayers();
  showHeads();
  if (focusedKey) document.querySelector(`[data-key="${focusedKey}"]`)?.focus({ preventScroll: true });
}

function showTokens(selected) {
  const targets = arcTargets(selected);
  tokenNodes.forEach((node, i) => {
    node.style.setProperty("--share", i <= state.token ? 0.6 * selected[i] : 0);
    node.lastChild.textContent = i === state.token || targets.includes(i) ? wholePercent(selected[i]) : "";
  });
}

// The tokens that get an arc, the highest weight first.
function arcTargets(selected) {
  const targets = descending(selected).filter((i) => i !== state.token && selected[i] >= MIN_WEIGHT);
  return state.arcs ? targets : targets.slice(0, MAX_ARCS);
}

const showArcs = (selected) => drawArcs(tokenNodes, state.token, selected, arcTargets(selected));

function showAttention(selected) {
  const order = descending(selected);
  byId("attention-title").textContent = `What ${tokenName(state.token)}, attends to`;
  byId("attention-source").textContent = attentionSource();
  showShares(byId("attention-bars"), order.slice(0, MAX_ARCS).map((i) => [numberedToken(i), selected[i]]), wholePercent);
  byId("attention-table").replaceChildren(table(`Attention weights of token ${state.token + 1}, ${attentionSource()}`,
    ["token", "text", "weight"], order.map((i) => [i + 1, tokenSpan(tokens[i]), wholePercent(selected[i])]), [0, 2]));
}

function showPrediction() {
  const t = state.token, surprisal = data.surprisals[t], effect = data.effects[t], facts = [];
  if (surprisal !== null) facts.push(`Surprisal ${bits(surprisal)} bits: how unexpected it was after the tokens before it.`);
  if (effect !== null && Number(bits(effect))) facts.push(`Without it, the next token “${readable(data.next[0][0])}” would be ${bits(effect)} bits ${effect < 0 ? "more" : "less"} likely.`);
  byId("prediction-title").textContent = `Predicted after ${tokenName(t)}`;
  byId("prediction-facts").textContent = facts.join(" ");
  showShares(byId("prediction-bars"), predictions(L, t).map(([text, share]) => [tokenSpan(text), share]));
}

// For screen readers.
function showAnnouncement(selected) {
  const name = tokenName(state.token);
  byId("announcement").textContent = `T${name.slice(1)}. Next: ` +
    predictions(L, state.token).slice(0, 3).map(([text, share]) => `${readable(text)} ${percent(share)}`).join(", ") + ". Attends most to: " +
    descending(selected).slice(0, 3).map((i) => `${readable(tokens[i])} ${wholePercent(selected[i])}`).join(", ") + ".";
}

// ---- tables with a row per layer

// The rows of the last layers and the selected one, with a button for the others.
function layerRows(key, columns, row) {
  const layers = Array.from({ length: L }, (_, l) => l + 1);
  if (L <= MAX_LAYERS) return layers.map(row);
  const button = element("button", { type: "button", class: "fold", "aria-expanded": String(Boolean(state.layers)), "data-key": key },
    `${state.layers ? "Hide" : "Show"} layers 1 to ${L - MAX_LAYERS}`);
  button.addEventListener("click", () => select({ layers: state.layers ? "" : "all" }));
  return [element("tr", {}, element("td", { colspan: columns }, button)),
    ...layers.filter((l) => state.layers || l > L - MAX_LAYERS || l === state.layer).map(row)];
}

function showLayers() {
  const t = state.token, columns = data.lens[L][t].length, predicted = data.lens[L][t][0][0];
  const row = (depth) => [depth || "none", ...data.lens[depth][t].map(([text, share]) => {
    const node = cell("span", data.texts[text], share, percent);
    if (text === predicted) node.classList.add("predicted");
    return node;
  })];
  byId("layers-hint").textContent = `The logit lens: the prediction after ${tokenName(t)}, if the model stopped after that layer. ` +
    `Outlined: “${readable(data.texts[predicted])}”, the most likely token after the last layer.`;
  byId("layers").replaceChildren(table(`Predictions after token ${t + 1}, the most likely first`,
    ["layer", ...Array.from({ length: columns }, (_, i) => i + 1)], [row(0), ...layerRows("fold-layers", columns + 1, row)]));
}

function showHeads() {
  const t = state.token, heads = Array.from({ length: H }, (_, h) => h);
  byId("heads").replaceChildren(table(`What token ${t + 1} attends to most`,
    ["layer", ...heads.map((h) => (H === 1 ? "mean of its heads" : "head " + (h + 1)))],
    layerRows("fold-heads", H + 1, (l) => [l, ...heads.map((h) => headButton(l, h, t))])));
}

// The token that a head attends to most, as a button that selects the head.
function headButton(l, h, t) {
  const headWeights = weights(l, h + 1, t), top = headWeights.indexOf(Math.max(...headWeights));
  const label = `layer ${l}, head ${h + 1}: ${readable(tokens[top])}, ${wholePercent(headWeights[top])}`;
  const button = cell("button", tokens[top], headWeights[top], wholePercent, label);
  button.setAttribute("aria-pressed", String(state.layer === l && (state.head === h + 1 || H === 1)));
  button.addEventListener("click", () => select({ layer: l, head: H === 1 ? 0 : h + 1, pinned: true }));
  button.dataset.key = l - 1 + "-" + h;
  return button;
}

function cell(tag, text, share, format, label) {
  const node = element(tag, { class: "cell", ...(label ? { "aria-label": label, type: "button" } : {}) },
    tokenSpan(text), element("span", { class: "figure" }, format(share)));
  node.style.setProperty("--share", share);
  return node;
}

// ---- the whole prompt

// Bars of [name, share], and one more for the rest up to 1.
function showShares(list, rows, format = percent) {
  const rest = 1 - rows.reduce((sum, [, share]) => sum + share, 0);
  showBars(list, [...rows.map(([name, share]) => [name, format(share), share]),
    ...(Number.parseFloat(format(rest)) > 0 ? [[element("span", { class: "faint" }, "all others"), format(rest), rest, "rest"]] : [])]);
}

function showAnswer() {
  showShares(byId("next-words"), data.words.map(([text, share], i) => [tokenSpan((data.continues[i] ? "…" : "") + text), share]));
  showShares(byId("next-tokens"), data.next.map(([text, share]) => [tokenSpan(text), share]));
  const [best] = data.words[0] ?? data.next[0], title = byId("title");
  if (title.textContent.length > 80) title.classList.add("long");
  title.append(" ", element("mark", { class: data.words.length && data.continues[0] ? "token joined" : "token" }, visible(best).replace(/^·/, "")));
}

function showEffects(onlyLargest) {
  const size = (i) => Math.abs(data.effects[i]);
  const known = [...data.effects.keys()].filter((i) => data.effects[i] !== null);
  const bySize = [...known].sort((a, b) => size(b) - size(a));
  const largest = Math.max(bySize.length ? size(bySize[0]) : 0, 1); // less than a bit never fills the width
  const shown = new Set(onlyLargest && known.length > MAX_EFFECTS ? bySize.slice(0, MAX_EFFECTS / 2) : known);
  showBars(byId("effects"), known.filter((i) => shown.has(i)).map((i) => {
    const figure = bits(data.effects[i]), isNegative = data.effects[i] < 0;
    const sign = isNegative ? "−" : "+", isZero = Number(figure) === 0; // as shown: then without a sign and a bar
    return [numberedToken(i), (isZero ? "" : sign) + figure, isZero ? 0 : size(i) / largest, isNegative ? "negative" : ""];
  }));
  const button = byId("effects-fold");
  button.hidden = known.length <= MAX_EFFECTS;
  button.textContent = onlyLargest ? `Show all ${known.length} tokens` : `Show the largest ${MAX_EFFECTS / 2}`;
  button.setAttribute("aria-expanded", String(!onlyLargest));
  button.onclick = () => showEffects(!onlyLargest);
}

function showTokenTable() {
  const figure = (value) => (value === null ? "" : (value < 0 && Number(bits(value, 3)) ? "−" : "") + bits(value, 3));
  const headings = ["token", "text", "id", "surprisal, bits", "effect, bits", "most likely next", "probability"];
  byId("token-table").append(table("All tokens", headings, tokens.map((text, i) => {
    const [next, share] = predictions(L, i)[0];
    return [i + 1, tokenSpan(text), data.ids[i], figure(data.surprisals[i]), figure(data.effects[i]), tokenSpan(next), percent(share)];
  }), [0, 2, 3, 4, 6]));
}

// ---- start

function addTokens() {
  byId("tokens").append(...tokenNodes);
  byId("tokens").dataset.size = N <= 12 ? "large" : N <= 40 ? "medium" : "small";
  tokenNodes.forEach((node, i) => {
    node.addEventListener("pointerenter", (event) => { if (!state.pinned && event.pointerType !== "touch") select({ token: i }); });
    node.addEventListener("focus", () => select({ token: i }));
    node.addEventListener("click", () => { node.focus(); select({ token: i, pinned: true }); });
  });
  byId("tokens").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    const target = event.key === "Home" ? 0 : event.key === "End" ? N - 1 : step ? state.token + step : -1;
    if (event.key === "Escape") state.pinned = false;
    if (target < 0 || target >= N) return;
    event.preventDefault();
    tokenNodes[target].focus();
  });
}

function addControls() {
  for (const [id, count] of [["layer", L], ["head", H]]) {
    byId(id).append(element("option", { value: 0 }, "mean"));
    if (count > 1 || id === "layer") for (let i = 1; i <= count; i++) byId(id).append(element("option", { value: i }, i));
    byId(id).addEventListener("change", (event) => select({ [id]: Number(event.target.value) }));
  }
  byId("arcs").append(element("option", { value: "" }, `strongest ${MAX_ARCS}`), element("option", { value: "all" }, "all"));
  byId("arcs").addEventListener("change", (event) => select({ arcs: event.target.value }));
}

// The fragment of the address selects: #token=3&layer=1&head=2&arcs=all&layers=all
function selectByAddress() {
  const values = new URLSearchParams(location.hash.slice(1));
  const number = (name, max) => Math.min(max, Math.max(0, parseInt(values.get(name), 10) || 0));
  const all = (name) => (values.get(name) === "all" ? "all" : "");
  select({ token: (number("token", N) || N) - 1, layer: number("layer", L), head: H > 1 ? number("head", H) : 0,
    arcs: all("arcs"), layers: all("layers") });
}

addTokens();
addControls();
showEffects(true);
showAnswer();
showTokenTable();
new ResizeObserver(() => showArcs(selectedWeights())).observe(byId("token-area"));
addEventListener("hashchange", selectByAddress);
selectByAddress();
