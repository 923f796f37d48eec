// Inside: what happens in the model when it predicts, and what changes when parts of it are switched off.
let L = 0, H = 0; // layers and heads of each
const MAX_ARCS = 5, MIN_WEIGHT = 0.01; // attention below this gets no arc
const MAX_CONTRIBUTIONS = 8, MAX_EFFECTS = 16; // bars
const off = new Set(); // parts that are switched off
const selected = { layer: null, head: null, token: 0 }; // counted from 0; null: the mean
let target = ""; // the next word whose first token is explained, if it is not the most likely one
let inside = { labels: [], attention: [] }; // what the page shows; the attention is that of the selected token
let lastAttention = 0; // number of the last request

// Forgets what was shown of another model.
function resetInside() {
  const { num_hidden_layers: layers, num_attention_heads: heads } = data.config;
  [L, H] = [layers, heads];
  off.clear();
  for (const part of data.start.without) off.add(part);
  Object.assign(selected, { layer: null, head: null, token: 0 });
  target = "";
  inside = { labels: [], attention: [] };
}

const refreshInside = () => request("inside", { ...state, without: [...off], target }, (answer) => {
  if (answer.pairs) showChange(answer);
  if (answer.labels) showActivations(answer);
  if (answer.effects) showEffects(answer.effects);
});

// ---- the parts: switches for layers and heads, colored by what they add to the prediction

const partName = (layer, head) => say(head === undefined ? "layerName" : "headName", { layer: layer + 1, head: head + 1 });
const nameOf = (part) => (part === "cache" ? say("ngramCache") : partName(...part.split(".").map((number) => number - 1)));
// Several parts in a sentence: the heads of a layer together.
function namesOf(parts) {
  const numbers = (all) => all.map(Number).sort((a, b) => a - b), join = (all) => new Intl.ListFormat(language).format(all.map(String));
  const layers = numbers([...new Set(parts.filter((part) => part !== "cache").map(layerOf))]);
  const names = layers.map((layer) => {
    const heads = numbers(parts.filter((part) => part.startsWith(`${layer}.`)).map((part) => part.split(".")[1]));
    if (parts.includes(`${layer}`)) return say("layerInText", { layer });
    return say(heads.length > 1 ? "headsInText" : "headInText", { layer, heads: join(heads) });
  });
  return join([...names, ...(parts.includes("cache") ? [say("cacheInText")] : [])]);
}
const signed = (value, figure = Math.abs(value).toFixed(2)) => (Number(figure) ? (value < 0 ? "−" : "+") : "") + figure;

const canSwitch = () => data.has_switches !== false; // an ensemble's parts cannot be switched off
const layerOf = (part) => part.split(".")[0];
const isOff = (part) => off.has(part) || off.has(layerOf(part));

function showParts() {
  const focused = document.activeElement.dataset.part;
  const cell = (label, contribution, name, part, layerIsOff = false) => {
    const title = contribution === undefined ? name : `${name}: ${signed(contribution)}`;
    const kinds = { off: layerIsOff, planted: part in data.planted, negative: contribution < 0 };
    const names = Object.keys(kinds).filter((kind) => kinds[kind]).join(" ");
    const share = contribution ? Math.abs(contribution) / inside.largest : 0;
    const attributes = { title, "aria-label": title, class: names, share };
    if (!part || !canSwitch()) return element("span", attributes, label);
    const ofSwitch = { role: "switch", "aria-checked": !isOff(part), tabindex: -1, "data-part": part };
    return clickable(() => switchPart(part), { ...attributes, ...ofSwitch }, label);
  };
  const { embedding, heads, mlp } = inside.attribution ?? {};
  const rows = [[cell(say("embedding"), embedding, say("embedding"))], ...Array.from({ length: L }, (_, layer) => [
    cell(partName(layer), undefined, partName(layer), `${layer + 1}`),
    ...Array.from({ length: H }, (_, head) => cell(head + 1, heads?.[layer][head], partName(layer, head), `${layer + 1}.${head + 1}`)),
    cell("MLP", mlp?.[layer], say("mlpName", { layer: layer + 1 }), undefined, off.has(`${layer + 1}`)), // no switch of its own
  ]), ...(data.ngram_cache ? [[cell(say("ngramCache"), undefined, say("ngramCache"), "cache")]] : [])];
  byId("parts").replaceChildren(...rows.map((cells) => element("div", {}, ...cells)));
  const switches = [...byId("parts").querySelectorAll("button")], current = switches.find((node) => node.dataset.part === focused);
  if (switches.length) (current ?? switches[0]).tabIndex = 0;
  current?.focus();
  byId("all-on").disabled = !off.size;
  byId("parts-hint").textContent = say(canSwitch() ? "partsHint" : "noSwitches");
}

// A head that is off because its layer is off is switched on together with the layer.
function switchPart(part) {
  if (isOff(part)) [part, layerOf(part)].forEach((one) => off.delete(one));
  else off.add(part);
  if (part.includes(".")) selectHead(...part.split(".").map((number) => number - 1));
  announce(say(isOff(part) ? "isOff" : "isOn", { part: nameOf(part) }));
  showParts();
  refresh();
}

byId("all-on").addEventListener("click", () => {
  off.clear();
  byId("parts").querySelector("button").focus();
  showParts();
  refresh();
});
byId("parts").addEventListener("keydown", (event) => {
  const rows = [...byId("parts").children].slice(1), row = rows.indexOf(document.activeElement.parentNode);
  if (row < 0) return;
  const up = { ArrowUp: -1, ArrowDown: 1 }[event.key], target = rows[row + up]?.children[[...rows[row].children].indexOf(document.activeElement)];
  if (!target) return void moveFocus(event, rows[row], "button");
  document.activeElement.tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
  event.preventDefault();
});

// ---- what comes next, with and without the parts

function showChange({ pairs, chosen, token, tail, entropy, expert }) {
  byId("expert").textContent = expert ? say("expert", { name: expert.name, weight: percent(expert.weight) }) : "";
  const { text, p, q, bits } = chosen, word = text.replace(/^…/, ""), isWhole = text === "<end>" || readable(token.slice(tail.length)) === readable(word);
  const begins = isWhole ? "" : say("firstToken", { word: readable(text), token: readable(token) });
  byId("tail").textContent = tail ? say("tail", { token: readable(token), tail: readable(tail) }) : begins;
  byId("entropy").textContent = say("entropy", { bits: entropy.toFixed(2), count: (2 ** entropy).toFixed(1) });
  inside.token = readable(token);
  byId("attribution-title").textContent = say("attributionTitle", { token: inside.token });
  byId("effects-title").textContent = say("effectsTitle", { token: inside.token });
  const amount = { token: text === "<end>" ? say("end") : readable(text), p: percent(p), q: percent(q), bits: Math.abs(bits).toFixed(2) };
  const change = Number(amount.bits) === 0 ? "unchanged" : bits < 0 ? "lessLikely" : "moreLikely";
  byId("change").textContent = off.size || canSwitch() ? say(off.size ? change : "switchSomething", amount) : "";
  showBothBars(byId("change-bars"), pairs, off.size > 0, (one) => clickable(() => { target = one; refresh(); },
    { class: "choice", "aria-pressed": one === text }, choiceSpan(one)));
}

// Bars of one prediction, or of two: the first, then the second.
function showBothBars(list, pairs, areTwo, nameNode = choiceSpan) {
  showBars(list, pairs.map(({ text, p, q }) => ({ name: nameNode(text), share: p, second: areTwo ? q : undefined })));
}

// ---- attention

const wholePercent = (weight) => Math.round(100 * weight) + "%";

function showActivations({ labels, lens, attribution, attention }) {
  const hasNewTokens = labels.join("\n") !== inside.labels.join("\n");
  if (attribution.mlp.length !== L || attribution.heads[0].length !== H) { // another model of an ensemble
    [L, H] = [attribution.mlp.length, attribution.heads[0].length];
    Object.assign(selected, { layer: null, head: null });
    showHeadChoices();
  }
  inside = { ...inside, labels, attribution };
  const parts = [attribution.embedding, ...attribution.heads.flat(), ...attribution.mlp];
  inside.largest = Math.max(...parts.map(Math.abs), 1e-9);
  if (hasNewTokens) showInsideTokens();
  showParts();
  showLens(byId("lens"), lens, inside.token, say("lensCaption"));
  showAttribution();
  if (selected.token < labels.length - 1) return requestAttention();
  lastAttention = 0;
  inside.attention = attention;
  showAttention();
}

function showInsideTokens() {
  selected.token = inside.labels.length - 1;
  byId("effects").replaceChildren();
  byId("tokens").setAttribute("aria-label", say("tokensTitle"));
  byId("tokens").dataset.size = inside.labels.length <= 12 ? "medium" : "small";
  byId("tokens").replaceChildren(...inside.labels.map((label, i) => element("div", {
    class: "token", role: "option", tabindex: i === selected.token ? 0 : -1, "aria-label": readable(label),
  }, element("span", {}, withFaintMarks(label)), element("span", { class: "weight" }))));
  byId("token-scroll").scrollTop = byId("token-scroll").scrollHeight; // the last token is selected
}
function selectToken(node) {
  const i = [...byId("tokens").children].indexOf(node);
  if (i < 0 || i === selected.token) return;
  selected.token = i;
  requestAttention();
}
byId("tokens").addEventListener("focusin", (event) => selectToken(event.target));
byId("tokens").addEventListener("click", (event) => event.target.closest(".token")?.focus());
byId("tokens").addEventListener("keydown", (event) => moveFocus(event, byId("tokens")));
byId("head").addEventListener("change", (event) => {
  const [layer, head] = event.target.value.split(".").map((number) => number - 1);
  selectHead(event.target.value ? layer : null, head ?? null);
  showAttention();
});

function selectHead(layer, head) {
  Object.assign(selected, { layer, head });
  byId("head").value = layer === null ? "" : head === null ? `${layer + 1}` : `${layer + 1}.${head + 1}`;
}

function showHeadChoices() {
  const option = (value, ...text) => element("option", { value }, ...text);
  byId("head").replaceChildren(option("", say("allHeads")), ...Array.from({ length: L }, (_, layer) => [
    ...(H > 1 ? [option(`${layer + 1}`, say("layerMean", { layer: layer + 1 }))] : []),
    ...Array.from({ length: H }, (_, head) => option(`${layer + 1}.${head + 1}`, partName(layer, head))),
  ]).flat());
  selectHead(selected.layer, selected.head);
  byId("planted").replaceChildren(...(data.ngram_cache ? [element("li", {}, say("cacheHint"))] : []), ...plantedHeads().map((text) => element("li", {}, text)));
}

// What some heads were before training.
function plantedHeads() {
  const heads = Object.entries(data.planted), back = heads.map(([, text]) => text.match(/\d+/)?.[0]); // of those that attend so many tokens back
  const names = (areBack) => heads.filter((_, i) => Boolean(back[i]) === areBack).map(([part]) => part).join(say("comma"));
  if (!heads.length) return [];
  return [say("previousTokenHeads", { heads: names(true), back: back.filter(Boolean).join(say("comma")) }), say("inductionHeads", { heads: names(false) })];
}

function requestAttention() {
  lastAttention = request("attention", { position: selected.token }, ({ id, attention }) => {
    if (id !== lastAttention || !attention) return;
    inside.attention = attention;
    showAttention();
  });
}

function showAttention() {
  if (!inside.attention.length) return; // no answer yet
  const { labels, attention } = inside, { layer, head } = selected, nodes = [...byId("tokens").children];
  const ofLayer = layer === null ? attention.flat() : attention[layer];
  const heads = head === null ? ofLayer : ofLayer.slice(head, head + 1);
  const weights = Array.from(heads[0] ?? [], (_, i) => heads.reduce((sum, row) => sum + row[i], 0) / heads.length);
  const ranked = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).filter((i) => weights[i] >= MIN_WEIGHT).slice(0, MAX_ARCS);
  nodes.forEach((node, i) => {
    node.setAttribute("aria-selected", String(i === selected.token));
    node.style.setProperty("--share", 0.6 * (weights[i] ?? 0));
    node.lastChild.textContent = ranked.includes(i) ? wholePercent(weights[i]) : "";
  });
  drawArcs(nodes, selected.token, weights, ranked.filter((i) => i !== selected.token));
  const listed = ranked.slice(0, 3).map((i) => say("weightOf", { token: readable(labels[i]), weight: wholePercent(weights[i]) })).join(say("comma"));
  byId("attention-text").textContent = listed ? say("attendsTo", { token: readable(labels[selected.token]), listed }) : say("noAttention");
  showHeads();
}

// The token that each head attends to most; a click shows the arcs of the head.
function showHeads() {
  const focused = document.activeElement.dataset.head;
  const button = (layer, head, weights) => {
    const weight = Math.max(...weights), label = inside.labels[weights.indexOf(weight)], figure = wholePercent(weight);
    const isSelected = selected.layer === layer && selected.head === head;
    const name = `${partName(layer, head)}: ${readable(label)} ${figure}`;
    return clickable(() => { selectHead(layer, head); showAttention(); }, {
      class: "cell", "data-head": `${layer}.${head}`, "aria-pressed": isSelected, "aria-label": name, share: weight,
    }, tokenSpan(label), element("span", { class: "figure" }, figure));
  };
  const rows = inside.attention.map((row, layer) => [layer + 1, ...row.map((one, head) => button(layer, head, one))]);
  const caption = say("headsCaption", { token: readable(inside.labels[selected.token]) });
  const headings = [say("layer"), ...Array.from({ length: H }, (_, head) => `${say("head")} ${head + 1}`)];
  byId("heads").replaceChildren(table(caption, headings, rows));
  if (focused) byId("heads").querySelector(`[data-head="${focused}"]`)?.focus({ preventScroll: true });
}
new ResizeObserver(() => byId("inside").hidden || showAttention()).observe(byId("token-area"));

// ---- layers, parts and tokens

// A row for each layer; `token`, which is predicted in the end, is outlined.
function showLens(node, lens, token, caption) {
  const cell = ({ label, probability }) => {
    const kind = readable(label) === token ? "cell predicted" : "cell", figure = wholePercent(probability);
    const attributes = { class: kind, title: visible(label), share: probability };
    return element("span", attributes, tokenSpan(label), element("span", { class: "figure" }, figure));
  };
  const rows = lens.map((row, depth) => [depth > L ? say("ngramCache") : depth || say("embedding"), ...row.map(cell)]);
  node.replaceChildren(table(caption, [say("layer"), ...lens[0].map((_, i) => i + 1)], rows));
}

// Signed bars of [name, value].
function showSigned(list, rows) {
  const largest = Math.max(...rows.map(([, value]) => Math.abs(value)), 1); // less never fills the width
  showBars(list, rows.map(([name, value]) => {
    const kind = value < 0 ? "negative" : "", share = Math.abs(value) / largest;
    return { name: element("span", {}, name), share, kind, figure: signed(value) };
  }));
}
const bySize = (rows) => [...rows].sort(([, a], [, b]) => Math.abs(b) - Math.abs(a));
const sum = (rows) => rows.reduce((total, [, value]) => total + value, 0);

function showAttribution() {
  const { embedding, heads, mlp } = inside.attribution;
  const rows = bySize([[say("embedding"), embedding], ...mlp.map((value, layer) => [say("mlpName", { layer: layer + 1 }), value]),
    ...heads.flatMap((row, layer) => row.map((value, head) => [partName(layer, head), value]))]);
  const rest = rows.slice(MAX_CONTRIBUTIONS);
  showSigned(byId("attribution"), [...rows.slice(0, MAX_CONTRIBUTIONS), ...(rest.length ? [[say("otherParts", { count: rest.length }), sum(rest)]] : [])]);
  byId("attribution").append(element("li", { class: "total" }, element("span", {}, say("logit")), element("span", { class: "figure" }, signed(sum(rows)))));
}

function showEffects(effects) {
  const rows = effects.map((bits, i) => [tokenSpan(inside.labels[i]), bits]).filter(([, bits]) => bits !== null);
  const shown = new Set(bySize(rows).slice(0, MAX_EFFECTS));
  showSigned(byId("effects"), rows.filter((row) => shown.has(row)));
}
