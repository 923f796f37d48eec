// How a model reads a prompt: choose a token, a layer, a head; arcs show what the token attends to.
const { tokens, layers: L, heads: H } = data;
const N = tokens.length;
const STRONGEST = 5; // arcs drawn, unless all are asked for
const LEAST = 0.01; // of attention, for an arc
const UNFOLDED = 8; // layers shown in a table, the last ones, unless all are asked for
const MANY = 24; // tokens; of more the effects of the strongest are shown, unless all are asked for
const triangle = (N * (N + 1)) / 2;
const bytes = Uint8Array.from(atob(data.attention), (c) => c.charCodeAt(0));
const state = { token: N - 1, layer: 0, head: 0, arcs: "", layers: "", pinned: false }; // layer, head from 1; 0: the mean

// The attention weights of the token at `row`, on each token up to itself.
function weights(layer, head, row) {
  const found = new Float64Array(row + 1);
  const ls = layer ? [layer - 1] : [...Array(L).keys()];
  const hs = head ? [head - 1] : [...Array(H).keys()];
  for (const l of ls) for (const h of hs) {
    const start = (l * H + h) * triangle + (row * (row + 1)) / 2;
    for (let i = 0; i <= row; i++) found[i] += bytes[start + i];
  }
  return found.map((sum) => sum / (255 * ls.length * hs.length));
}
const where = () => (state.layer ? `layer ${state.layer} of ${L}` : `mean of ${L} layers`) +
  (H === 1 ? ", mean of its heads" : state.head ? `, head ${state.head} of ${H}` : `, mean of ${H} heads`);
const candidates = (depth, position) => data.lens[depth][position].map(([which, chance]) => [data.texts[which], chance]);
const numbered = (i) => make("span", { class: "token" },
  make("span", { class: "mark" }, String(i + 1).padStart(String(N).length) + " "), marked(tokens[i]));
const whole = (weight) => Math.round(100 * weight) + "%"; // attention is kept to a 255th: more digits would say too much
const bits = (value, digits = 2) => Math.abs(value).toFixed(digits);

const nodes = tokens.map((text, i) => make("div", {
  class: "token", role: "option", id: "token-" + (i + 1), tabindex: -1, "aria-selected": "false",
  "aria-label": `token ${i + 1}, ${spoken(text)}, id ${data.ids[i]}`,
}, make("span", {}, marked(text)), make("span", { class: "weight" })));

function select(changes) {
  Object.assign(state, changes);
  nodes.forEach((node, i) => {
    node.setAttribute("aria-selected", String(i === state.token));
    node.tabIndex = i === state.token ? 0 : -1;
  });
  for (const id of ["layer", "head", "arcs"]) at(id).value = state[id];
  draw();
  const fragment = `#token=${state.token + 1}&layer=${state.layer}&head=${state.head}` +
    (state.arcs && "&arcs=all") + (state.layers && "&layers=all");
  if (location.hash !== fragment) history.replaceState(null, "", fragment);
}

function draw() {
  const t = state.token, look = weights(state.layer, state.head, t), here = `token ${t + 1}, ${spoken(tokens[t])}`;
  const order = [...look.keys()].sort((a, b) => look[b] - look[a]);
  const shown = drawn(look);
  nodes.forEach((node, i) => {
    node.style.setProperty("--share", i <= t ? 0.6 * look[i] : 0);
    node.lastChild.textContent = i === t || shown.includes(i) ? whole(look[i]) : "";
  });
  drawLines(look);
  const best = candidates(L, t);
  at("attends").textContent = `What ${here}, attends to`;
  at("where").textContent = where();
  probabilities(at("attended"), order.slice(0, STRONGEST).map((i) => [numbered(i), look[i]]), whole);
  at("after").textContent = `Predicted after ${here}`;
  const facts = [];
  if (data.surprises[t] !== null) facts.push(`Surprisal ${bits(data.surprises[t])} bits: how unexpected it was after the tokens before it.`);
  if (data.effects[t] !== null) facts.push(`Without it, the next token “${spoken(data.next[0][0])}” would be ${bits(data.effects[t])} bits ${data.effects[t] < 0 ? "more" : "less"} likely.`);
  at("facts").textContent = facts.join(" ");
  probabilities(at("candidates"), best.map(([text, chance]) => [token(text), chance]));
  at("said").textContent = `T${here.slice(1)}. Next: ` +
    best.slice(0, 3).map(([text, chance]) => `${spoken(text)} ${percent(chance)}`).join(", ") + ". Attends most to: " +
    order.slice(0, 3).map((i) => `${spoken(tokens[i])} ${whole(look[i])}`).join(", ") + ".";
  const focused = document.activeElement?.dataset.place; // the tables are built anew
  drawLayers(t);
  drawGrid(t);
  at("look").replaceChildren(table(`Attention weights of token ${t + 1}, ${where()}`, ["token", "text", "weight"],
    order.map((i) => [i + 1, token(tokens[i]), whole(look[i])]), [0, 2]));
  if (focused) document.querySelector(`[data-place="${focused}"]`)?.focus({ preventScroll: true });
}

// Rows of a table with a row for each layer: the last few, the chosen one, and a button for the others.
function folded(name, columns, row) {
  const layers = Array.from({ length: L }, (_, l) => l + 1);
  if (L <= UNFOLDED) return layers.map(row);
  const button = make("button", { type: "button", class: "fold", "aria-expanded": String(Boolean(state.layers)), "data-place": name },
    `${state.layers ? "Hide" : "Show"} layers 1 to ${L - UNFOLDED}`);
  button.addEventListener("click", () => select({ layers: state.layers ? "" : "all" }));
  return [make("tr", {}, make("td", { colspan: columns }, button)),
    ...layers.filter((l) => state.layers || l > L - UNFOLDED || l === state.layer).map(row)];
}

function drawLayers(t) {
  const answer = data.lens[L][t][0][0], width = data.lens[L][t].length;
  const row = (depth) => [depth || "none", ...data.lens[depth][t].map(([which, chance]) => {
    const node = cell("span", data.texts[which], chance, percent);
    if (which === answer) node.classList.add("same");
    return node;
  })];
  at("layers-hint").textContent = `The next token after token ${t + 1}, ${spoken(tokens[t])}, if the model stopped at that layer (the logit lens). ` +
    `Outlined: “${spoken(data.texts[answer])}”, the likeliest in the end.`;
  at("layers").replaceChildren(table(`Candidates after token ${t + 1}, the likeliest first`,
    ["layer", ...Array.from({ length: width }, (_, i) => i + 1)], [row(0), ...folded("fold-layers", width + 1, row)]));
}

function drawGrid(t) {
  const heads = Array.from({ length: H }, (_, h) => h);
  at("grid").replaceChildren(table(`What token ${t + 1} attends to most`,
    ["layer", ...heads.map((h) => (H === 1 ? "mean of its heads" : "head " + (h + 1)))],
    folded("fold-grid", H + 1, (l) => [l, ...heads.map((h) => {
      const found = weights(l, h + 1, t), top = found.indexOf(Math.max(...found));
      const button = cell("button", tokens[top], found[top], whole, `layer ${l}, head ${h + 1}: ${spoken(tokens[top])}, ${whole(found[top])}`);
      button.setAttribute("aria-pressed", String(state.layer === l && (state.head === h + 1 || H === 1)));
      button.addEventListener("click", () => select({ layer: l, head: H === 1 ? 0 : h + 1, pinned: true }));
      button.dataset.place = l - 1 + "-" + h;
      return button;
    })])));
}

function cell(tag, text, share, figure, label) {
  const node = make(tag, { class: "cell", ...(label ? { "aria-label": label, type: "button" } : {}) },
    token(text), make("span", { class: "figure" }, figure(share)));
  node.style.setProperty("--share", share);
  return node;
}

// The tokens that an arc leads to, the strongest first.
function drawn(look) {
  const others = [...look.keys()].filter((i) => i !== state.token && look[i] >= LEAST).sort((a, b) => look[b] - look[a]);
  return state.arcs ? others : others.slice(0, STRONGEST);
}

function drawLines(look) {
  at("place").classList.toggle("wrapped", nodes[N - 1].offsetTop > nodes[0].offsetTop);
  const box = at("place").getBoundingClientRect();
  const place = (node) => {
    const b = node.getBoundingClientRect();
    return { x: b.left + b.width / 2 - box.left, top: b.top - box.top, bottom: b.bottom - box.top };
  };
  const from = place(nodes[state.token]);
  const room = at("place").classList.contains("wrapped") ? parseFloat(getComputedStyle(at("strip")).rowGap) - 8 : 84; // pixels
  at("lines").replaceChildren(...drawn(look).map((i) => {
    const to = place(nodes[i]);
    const same = Math.abs(to.top - from.top) < 4; // in the same row: an arc over it; else a line up to the other
    const height = same ? Math.min(room, 18 + Math.abs(to.x - from.x) / 5) : Math.max(26, (from.top - to.bottom) / 2);
    const end = same ? to.top : to.bottom;
    const d = `M${from.x} ${from.top} C${from.x} ${from.top - height} ${to.x} ${same ? end - height : end + height} ${to.x} ${end}`;
    return make("path", { d, "stroke-width": (1.25 + 6 * look[i]).toFixed(2), "stroke-opacity": (0.3 + 0.7 * look[i]).toFixed(2) });
  }));
}

// Rows of [name, share], and one more for what is left of 1.
function probabilities(list, rows, figure = percent) {
  const rest = 1 - rows.reduce((sum, [, share]) => sum + share, 0);
  bars(list, [...rows.map(([name, share]) => [name, figure(share), share]),
    ...(Number.parseFloat(figure(rest)) > 0 ? [[make("span", { class: "mark" }, "all others"), figure(rest), rest, "rest"]] : [])]);
}

function showAnswer() {
  probabilities(at("words"), data.words.map(([text, chance], i) => [token((data.continues[i] ? "…" : "") + text), chance]));
  probabilities(at("next"), data.next.map(([text, chance]) => [token(text), chance]));
  const [best] = data.words[0] ?? data.next[0];
  if (at("title").textContent.length > 80) at("title").classList.add("long");
  at("title").append(" ", make("mark", { class: data.words.length && data.continues[0] ? "token joined" : "token" }, shown(best).replace(/^·/, "")));
}

function showEffects(few) {
  const size = (i) => Math.abs(data.effects[i] ?? 0);
  const known = [...data.effects.keys()].filter((i) => data.effects[i] !== null);
  const strongest = [...known].sort((a, b) => size(b) - size(a));
  const most = Math.max(size(strongest[0]), 1e-9);
  const kept = new Set(few && known.length > MANY ? strongest.slice(0, MANY / 2) : known);
  bars(at("effects"), known.filter((i) => kept.has(i)).map((i) => {
    const figure = bits(data.effects[i]), against = data.effects[i] < 0;
    return [numbered(i), (Number(figure) === 0 ? "" : against ? "−" : "+") + figure, size(i) / most, against ? "against" : ""];
  }));
  const button = at("effects-fold");
  button.hidden = known.length <= MANY;
  button.textContent = few ? `Show all ${known.length} tokens` : `Show the strongest ${MANY / 2}`;
  button.setAttribute("aria-expanded", String(!few));
  button.onclick = () => showEffects(!few);
}

function begin() {
  at("strip").append(...nodes);
  at("strip").dataset.size = N <= 12 ? "large" : N <= 40 ? "medium" : "small";
  nodes.forEach((node, i) => {
    node.addEventListener("pointerenter", (event) => { if (!state.pinned && event.pointerType !== "touch") select({ token: i }); });
    node.addEventListener("focus", () => select({ token: i }));
    node.addEventListener("click", () => { node.focus(); select({ token: i, pinned: true }); });
  });
  at("strip").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    const goal = event.key === "Home" ? 0 : event.key === "End" ? N - 1 : step ? state.token + step : -1;
    if (event.key === "Escape") state.pinned = false;
    if (goal < 0 || goal >= N) return;
    event.preventDefault();
    nodes[goal].focus();
  });
  for (const [id, count] of [["layer", L], ["head", H]]) {
    at(id).append(make("option", { value: 0 }, "mean"));
    if (count > 1 || id === "layer") for (let i = 1; i <= count; i++) at(id).append(make("option", { value: i }, i));
    at(id).addEventListener("change", (event) => select({ [id]: Number(event.target.value) }));
  }
  at("arcs").append(make("option", { value: "" }, `strongest ${STRONGEST}`), make("option", { value: "all" }, "all"));
  at("arcs").addEventListener("change", (event) => select({ arcs: event.target.value }));
  showEffects(true);
  showAnswer();
  const figure = (value) => (value === null ? "" : (value < 0 ? "−" : "") + bits(value, 3));
  at("every").append(table("Every token", ["token", "text", "id", "surprisal, bits", "effect, bits", "likeliest next", "probability"],
    tokens.map((text, i) => [i + 1, token(text), data.ids[i], figure(data.surprises[i]), figure(data.effects[i]),
      token(candidates(L, i)[0][0]), percent(candidates(L, i)[0][1])]), [0, 2, 3, 4, 6]));
  new ResizeObserver(() => drawLines(weights(state.layer, state.head, state.token))).observe(at("place"));
  addEventListener("hashchange", read);
  read();
}

// The address may say what to show: #token=3&layer=1&head=2&arcs=all&layers=all
function read() {
  const said = new URLSearchParams(location.hash.slice(1));
  const number = (name, most) => Math.min(most, Math.max(0, parseInt(said.get(name), 10) || 0));
  const all = (name) => (said.get(name) === "all" ? "all" : "");
  select({ token: (number("token", N) || N) - 1, layer: number("layer", L), head: H > 1 ? number("head", H) : 0,
    arcs: all("arcs"), layers: all("layers") });
}
begin();
