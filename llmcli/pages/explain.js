// A prompt's way through a model: choose a token, a layer, a head; lines show where it looks.
const { tokens, layers: L, heads: H } = data;
const N = tokens.length;
const triangle = (N * (N + 1)) / 2;
const bytes = Uint8Array.from(atob(data.attention), (c) => c.charCodeAt(0));
const state = { token: N - 1, layer: 0, head: 0, pinned: false }; // layer and head from 1; 0 is the mean

// How much the token at `row` looks at each up to itself.
function shares(layer, head, row) {
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

const nodes = tokens.map((text, i) => make("div", {
  class: "token", role: "option", id: "token-" + (i + 1), tabindex: -1, "aria-selected": "false",
  "aria-label": `token ${i + 1}, ${spoken(text)}, id ${data.ids[i]}`,
}, shown(text)));

function select(changes) {
  Object.assign(state, changes);
  nodes.forEach((node, i) => {
    node.setAttribute("aria-selected", String(i === state.token));
    node.tabIndex = i === state.token ? 0 : -1;
  });
  at("layer").value = state.layer;
  at("head").value = state.head;
  draw();
  const fragment = `#token=${state.token + 1}&layer=${state.layer}&head=${state.head}`;
  if (location.hash !== fragment) history.replaceState(null, "", fragment);
}

function draw() {
  const t = state.token, look = shares(state.layer, state.head, t);
  nodes.forEach((node, i) => node.style.setProperty("--share", i <= t ? 0.6 * look[i] : 0));
  drawLines(look);
  const best = candidates(L, t);
  bars(at("candidates"), best.map(([text, chance]) => [text, percent(chance), chance]));
  at("after").textContent = `After token ${t + 1}, ${spoken(tokens[t])}: what comes next`;
  const facts = [`id ${data.ids[t]}`];
  if (data.surprises[t] !== null) facts.push(`it cost ${data.surprises[t].toFixed(2)} bits to tell after those before it`);
  if (data.effects[t] !== null) facts.push(`without it the answer “${spoken(data.next[0][0])}” ${data.effects[t] < 0 ? "gains" : "loses"} ${Math.abs(data.effects[t]).toFixed(2)} bits`);
  at("facts").textContent = facts.join("; ") + ".";
  const order = [...look.keys()].sort((a, b) => look[b] - look[a]);
  at("said").textContent = `Token ${t + 1}, ${spoken(tokens[t])}. Next: ` +
    best.slice(0, 3).map(([text, chance]) => `${spoken(text)} ${percent(chance)}`).join(", ") + ". It looks most at: " +
    order.slice(0, 3).map((i) => `${spoken(tokens[i])} ${percent(look[i])}`).join(", ") + ".";
  at("where").textContent = where();
  at("layers").replaceChildren(table(`What the model would say after each layer, after token ${t + 1}`,
    ["after layer", ...best.map((_, i) => i + 1)],
    data.lens.map((_, depth) => [depth || "none", ...candidates(depth, t).map(([text, chance]) => cell("span", text, chance))])));
  at("grid").replaceChildren(table("What token " + (t + 1) + " looks at most", ["layer",
    ...Array.from({ length: H }, (_, h) => (H === 1 ? "mean of its heads" : "head " + (h + 1)))],
    Array.from({ length: L }, (_, l) => [l + 1, ...Array.from({ length: H }, (_, h) => {
      const found = shares(l + 1, h + 1, t), top = found.indexOf(Math.max(...found));
      const button = cell("button", tokens[top], found[top], `layer ${l + 1}, head ${h + 1}: ${spoken(tokens[top])}, ${percent(found[top])}`);
      button.setAttribute("aria-pressed", String(state.layer === l + 1 && (state.head === h + 1 || H === 1)));
      button.addEventListener("click", () => select({ layer: l + 1, head: H === 1 ? 0 : h + 1, pinned: true }));
      button.dataset.place = l + "-" + h;
      return button;
    })])));
  at("look").replaceChildren(table(`Attention of token ${t + 1}, ${where()}`, ["token", "text", "share"],
    order.map((i) => [i + 1, token(tokens[i]), percent(look[i])]), [0, 2]));
}

function cell(tag, text, share, label) {
  const node = make(tag, { class: "cell", ...(label ? { "aria-label": label, type: "button" } : {}) },
    token(text), make("span", { class: "figure" }, percent(share)));
  node.style.setProperty("--share", share);
  return node;
}

function drawLines(look) {
  const box = at("place").getBoundingClientRect();
  const place = (node) => {
    const b = node.getBoundingClientRect();
    return { x: b.left + b.width / 2 - box.left, top: b.top - box.top, bottom: b.bottom - box.top };
  };
  const from = place(nodes[state.token]);
  at("lines").replaceChildren(...[...look.keys()].filter((i) => i !== state.token && look[i] >= 0.01).map((i) => {
    const to = place(nodes[i]);
    const same = Math.abs(to.top - from.top) < 4; // in the same row: an arc over it; else a line up to the other
    const height = Math.min(30, 8 + Math.abs(to.x - from.x) / 12);
    const d = same ? `M${from.x} ${from.top} C${from.x} ${from.top - height} ${to.x} ${to.top - height} ${to.x} ${to.top}`
      : `M${from.x} ${from.top} C${from.x} ${from.top - 40} ${to.x} ${to.bottom + 40} ${to.x} ${to.bottom}`;
    return make("path", { d, "stroke-width": (1 + 5 * look[i]).toFixed(2), "stroke-opacity": (0.2 + 0.8 * look[i]).toFixed(2) });
  }));
}

function begin() {
  at("strip").append(...nodes);
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
  const most = Math.max(...data.effects.map((bits) => Math.abs(bits ?? 0)), 1e-9);
  bars(at("effects"), tokens.flatMap((text, i) => (data.effects[i] === null ? [] : [
    [text, (data.effects[i] < 0 ? "−" : "+") + Math.abs(data.effects[i]).toFixed(2), Math.abs(data.effects[i]) / most, data.effects[i] < 0]])));
  bars(at("next"), data.next.map(([text, chance]) => [text, percent(chance), chance]));
  bars(at("words"), data.words.map(([text, chance]) => [text, percent(chance), chance]));
  at("every").append(table("Every token", ["token", "text", "id", "cost in bits", "effect in bits", "likeliest next", "share"],
    tokens.map((text, i) => [i + 1, token(text), data.ids[i], (data.surprises[i] ?? "").toString(), (data.effects[i] ?? "").toString(),
      token(candidates(L, i)[0][0]), percent(candidates(L, i)[0][1])]), [0, 2, 3, 4, 6]));
  new ResizeObserver(() => drawLines(shares(state.layer, state.head, state.token))).observe(at("place"));
  addEventListener("hashchange", read);
  read();
}

// The address may say what to show: #token=3&layer=1&head=2
function read() {
  const said = new URLSearchParams(location.hash.slice(1));
  const number = (name, most) => Math.min(most, Math.max(0, parseInt(said.get(name), 10) || 0));
  select({ token: (number("token", N) || N) - 1, layer: number("layer", L), head: H > 1 ? number("head", H) : 0 });
}
begin();
