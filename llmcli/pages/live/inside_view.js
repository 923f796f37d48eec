// Inside: what happens in the model when it predicts, and what changes when parts of it are switched off.
let L = 0, H = 0; // layers and heads of each: "2" is layer 2, "2.3" head 3 of layer 2
const MAX_ARCS = 5, MIN_WEIGHT = 0.01; // attention below this gets no arc
const MAX_CONTRIBUTIONS = 8, MAX_EFFECTS = 16; // bars
let off = new Set(); // the parts that are switched off
let selected = 0; // the token whose attention is shown
let target = ""; // the next word whose first token is explained, if it is not the most likely one
let inside = { labels: [], attention: [] }; // what the page shows; the attention is that of the selected token
let lastAttention = 0; // number of the last request

// Forgets what was shown of another model.
function resetInside(without) {
  ({ num_hidden_layers: L, num_attention_heads: H } = data.config);
  off = new Set(without);
  selected = 0;
  target = "";
  inside = { labels: [], attention: [] };
  byId("head").value = "";
}

const refreshInside = () => request("inside", { ...state, without: [...off], target }, (answer) => {
  if (answer.pairs) showChange(answer);
  if (answer.labels) showActivations(answer);
  if (answer.effects) showEffects(answer.effects);
});

// ---- the parts: switches for layers and heads, colored by what they add to the prediction

const numbersTo = (last) => Array.from({ length: last }, (_, i) => i + 1);
function nameOf(part) {
  const [layer, head] = part.split(".");
  return part === "cache" ? say("ngramCache") : say(head ? "headName" : "layerName", { layer, head });
}
// The parts that are switched off, in a sentence: the heads of a layer together.
function namesOfOff() {
  const join = (all) => new Intl.ListFormat(language).format(all.filter(Boolean).map(String));
  const names = numbersTo(L).map((layer) => {
    const heads = numbersTo(H).filter((head) => off.has(`${layer}.${head}`));
    if (off.has(`${layer}`)) return say("layerInText", { layer });
    return heads.length && say(heads.length > 1 ? "headsInText" : "headInText", { layer, heads: join(heads) });
  });
  return join([...names, off.has("cache") && say("cacheInText")]);
}
const signed = (value, figure = Math.abs(value).toFixed(2)) => (Number(figure) ? (value < 0 ? "−" : "+") : "") + figure;

const canSwitch = () => data.has_switches !== false; // an ensemble's parts cannot be switched off
const layerOf = (part) => part.split(".")[0];
const isOff = (part) => off.has(part) || off.has(layerOf(part));

function showParts() {
  const cell = (label, contribution, part, name = nameOf(part), layerIsOff = false) => {
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
  const rows = numbersTo(L).map((layer) => [
    cell(nameOf(`${layer}`), undefined, `${layer}`),
    ...numbersTo(H).map((head) => cell(head, heads?.[layer - 1][head - 1], `${layer}.${head}`)),
    cell("MLP", mlp?.[layer - 1], null, say("mlpName", { layer }), off.has(`${layer}`)), // no switch of its own
  ]);
  rows.unshift([cell(say("embedding"), embedding, null, say("embedding"))]);
  if (data.ngram_cache) rows.push([cell(say("ngramCache"), undefined, "cache")]);
  replaceWithFocus(byId("parts"), rows.map((cells) => element("div", {}, ...cells)));
  const first = byId("parts").querySelector("button:focus") ?? byId("parts").querySelector("button");
  if (first) first.tabIndex = 0;
  byId("all-on").disabled = !off.size;
  byId("parts-hint").textContent = say(canSwitch() ? "partsHint" : "noSwitches");
}

// A head that is off because its layer is off is switched on together with the layer.
function switchPart(part) {
  if (isOff(part)) [part, layerOf(part)].forEach((one) => off.delete(one));
  else off.add(part);
  if (part.includes(".")) byId("head").value = part;
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
  moveFocus(event, [...byId("parts").querySelectorAll("button")], H + 1);
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
    byId("head").value = "";
    showHeadChoices();
  }
  inside = { ...inside, labels, attribution };
  const parts = [attribution.embedding, ...attribution.heads.flat(), ...attribution.mlp];
  inside.largest = Math.max(...parts.map(Math.abs), 1e-9);
  if (hasNewTokens) showInsideTokens();
  showParts();
  showLens(byId("lens"), lens, inside.token, say("lensCaption"));
  showAttribution();
  if (selected < labels.length - 1) return requestAttention();
  lastAttention = 0;
  inside.attention = attention;
  showAttention();
}

function showInsideTokens() {
  selected = inside.labels.length - 1;
  byId("effects").replaceChildren();
  byId("tokens").setAttribute("aria-label", say("tokensTitle"));
  byId("tokens").dataset.size = inside.labels.length <= 12 ? "medium" : "small";
  byId("tokens").replaceChildren(...inside.labels.map((label, i) => element("div", {
    class: "token", role: "option", tabindex: i === selected ? 0 : -1, "aria-label": readable(label),
  }, element("span", {}, withFaintMarks(label)), element("span", { class: "weight" }))));
  byId("token-scroll").scrollTop = byId("token-scroll").scrollHeight; // the last token is selected
}
byId("tokens").addEventListener("focusin", (event) => {
  const i = [...byId("tokens").children].indexOf(event.target);
  if (i < 0 || i === selected) return;
  selected = i;
  requestAttention();
});
byId("tokens").addEventListener("click", (event) => event.target.closest(".token")?.focus());
byId("tokens").addEventListener("keydown", (event) => moveFocus(event, [...byId("tokens").children]));
byId("head").addEventListener("change", showAttention);

function showHeadChoices() {
  const option = (value, text) => element("option", { value }, text), before = byId("head").value;
  byId("head").replaceChildren(option("", say("allHeads")), ...numbersTo(L).flatMap((layer) => [
    ...(H > 1 ? [option(layer, say("layerMean", { layer }))] : []),
    ...numbersTo(H).map((head) => option(`${layer}.${head}`, nameOf(`${layer}.${head}`))),
  ]));
  byId("head").value = before;
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
  lastAttention = request("attention", { position: selected }, ({ id, attention }) => {
    if (id !== lastAttention || !attention) return;
    inside.attention = attention;
    showAttention();
  });
}

function showAttention() {
  if (!inside.attention.length) return; // no answer yet
  const { labels, attention } = inside, nodes = [...byId("tokens").children];
  const [layer, head] = byId("head").value.split(".");
  const ofLayer = layer ? attention[layer - 1] : attention.flat();
  const heads = head ? ofLayer.slice(head - 1, head) : ofLayer;
  const weights = Array.from(heads[0] ?? [], (_, i) => heads.reduce((sum, row) => sum + row[i], 0) / heads.length);
  const ranked = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).filter((i) => weights[i] >= MIN_WEIGHT).slice(0, MAX_ARCS);
  nodes.forEach((node, i) => {
    node.setAttribute("aria-selected", String(i === selected));
    node.style.setProperty("--share", 0.6 * (weights[i] ?? 0));
    node.lastChild.textContent = ranked.includes(i) ? wholePercent(weights[i]) : "";
  });
  drawArcs(nodes, selected, weights, ranked.filter((i) => i !== selected));
  const listed = ranked.slice(0, 3).map((i) => say("weightOf", { token: readable(labels[i]), weight: wholePercent(weights[i]) })).join(say("comma"));
  byId("attention-text").textContent = listed ? say("attendsTo", { token: readable(labels[selected]), listed }) : say("noAttention");
  showHeads();
}

// The token that each head attends to most; a click shows the arcs of the head.
function showHeads() {
  const button = (part, weights) => {
    const weight = Math.max(...weights), label = inside.labels[weights.indexOf(weight)], figure = wholePercent(weight);
    const name = `${nameOf(part)}: ${readable(label)} ${figure}`, isSelected = part === byId("head").value;
    const attributes = { class: "cell", "aria-pressed": isSelected, "aria-label": name, share: weight };
    return clickable(() => { byId("head").value = part; showAttention(); }, attributes,
      tokenSpan(label), element("span", { class: "figure" }, figure));
  };
  const rows = inside.attention.map((row, i) => (
    [i + 1, ...row.map((weights, head) => button(`${i + 1}.${head + 1}`, weights))]
  ));
  const caption = say("headsCaption", { token: readable(inside.labels[selected]) });
  const headings = [say("layer"), ...numbersTo(H).map((head) => `${say("head")} ${head}`)];
  replaceWithFocus(byId("heads"), [table(caption, headings, rows)]);
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
  const rows = bySize([[say("embedding"), embedding], ...mlp.map((value, i) => [say("mlpName", { layer: i + 1 }), value]),
    ...heads.flatMap((row, i) => row.map((value, head) => [nameOf(`${i + 1}.${head + 1}`), value]))]);
  const rest = rows.slice(MAX_CONTRIBUTIONS);
  showSigned(byId("attribution"), [...rows.slice(0, MAX_CONTRIBUTIONS), ...(rest.length ? [[say("otherParts", { count: rest.length }), sum(rest)]] : [])]);
  byId("attribution").append(element("li", { class: "total" }, element("span", {}, say("logit")), element("span", { class: "figure" }, signed(sum(rows)))));
}

function showEffects(effects) {
  const rows = effects.map((bits, i) => [tokenSpan(inside.labels[i]), bits]).filter(([, bits]) => bits !== null);
  const shown = new Set(bySize(rows).slice(0, MAX_EFFECTS));
  showSigned(byId("effects"), rows.filter((row) => shown.has(row)));
}
