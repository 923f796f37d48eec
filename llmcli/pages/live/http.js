// The run program on a server: it answers the requests of the page as worker.js does, by the routes of llm serve.
const TYPING_PAUSE = 100; // milliseconds in which a newer request may replace one
const BUSY_TRIES = 15, BUSY_PAUSE = 1000; // milliseconds, on average, before a request that a busy server refused is sent again

const knownTokens = new Map(); // id -> {text, bytes}
let explained = null; // the last request to explain a prediction
let coloring = new AbortController(); // of the last request for colors

const program = {};
const openingOf = () => ({});

// ---- the server

async function post(path, body, signal, tries = BUSY_TRIES) {
  const key = remembered("llm.api_key"), headers = { "Content-Type": "application/json", ...authorization() };
  const answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers, signal }).catch((error) => {
    throw error.name === "AbortError" ? error : new Problem("noServer");
  });
  const error = await refusalOf(answer), code = error?.code;
  if (!error) return answer;
  if (code === "queue_full" && tries > 1) { // a whole class asks at once
    await pause(signal, BUSY_PAUSE * (0.5 + Math.random()));
    return post(path, body, signal, tries - 1);
  }
  if (isRefusal(code)) throw new Problem(code);
  if (answer.status === 401) throw new Problem(key ? "wrongKey" : "needsKey");
  if (path.includes("/chat/") && code === "context_length_exceeded") throw new Problem("messageTooLong", { context: data.context });
  throw new Problem("serverSays", { error: error.message ?? answer.status });
}
const fetchJson = async (path, body, signal) => (await post(path, body && { model: data.model, ...body }, signal)).json();

// The choices in a stream of server-sent events.
async function* streamed(path, body, signal) {
  const answer = await post(path, { model: data.model, stream: true, return_token_ids: true, ...body }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let buffer = ""; ;) {
    const { value, done } = await reader.read();
    if (done) throw new Problem("noServer");
    const events = (buffer + value).split("\n\n");
    buffer = events.pop();
    for (const event of events.filter((one) => one.startsWith("data: "))) {
      if (event === "data: [DONE]") return;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Problem("serverSays", { error: chunk.error.message });
      yield chunk.choices[0] ?? { usage: chunk.usage };
    }
  }
}
onKey(() => openModel());

// ---- requests and answers in the words of the page

const pause = (signal, milliseconds = TYPING_PAUSE) => new Promise((resolve, reject) => {
  setTimeout(resolve, milliseconds);
  signal?.addEventListener("abort", () => reject(new DOMException("replaced", "AbortError")));
});
const promptOf = ({ text, ids, written }) => ({ prompt: ids ?? (text || data.beginning), ...(ids && written ? { generated_tokens: written } : {}) });
const filters = ({ temperature, topP, minP }) => ({ temperature, top_p: topP, min_p: minP });
function sampling({ temperature, topP, minP, stop, system, ...more }) { // `more` have the names of the route
  return { ...filters({ temperature, topP, minP }), ...more, ...(stop ? { stop: stop.split("\n").filter(Boolean) } : {}) };
}
const decode = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes), { stream: true }); // without an incomplete end
const idsOf = (choice) => (choice.logprobs?.content ?? []).map(({ id }) => id);
// The words of an explanation, or of two; if none was found, tokens in their place.
function pairsOf({ next, next_tokens: tokens, second }, isEnd) {
  const found = next.length ? next : tokens.map(({ id, ...one }) => ({ ...one, token_id: id }));
  return rankPairs(found.map(({ text, token_id: id, continues, probability, ...both }) => { // the id may be null
    const { first: p = probability, second: q = probability } = second ? both : {};
    return { ...pairOf((continues ? "…" : "") + text, p, q), id };
  }), isEnd);
}

// The logit lens of an explanation; the n-gram cache comes after the last layer.
function lensOf({ lens, next_tokens: prediction }, without) {
  const rows = [...lens.map((row) => row.next_tokens), ...(data.ngram_cache && !without.includes("cache") ? [prediction] : [])];
  return rows.map((row) => row.slice(0, LENS_TOKENS).map(({ text, probability }) => ({ label: text, probability })));
}

// The attention of a token in an explanation, [L][H][tokens so far]; layers that are switched off have none.
function attentionOf({ second, ...first }, position) {
  const { weights } = (second ?? first).attention, isOff = (layer) => explained.without.includes(`${layer + 1}`);
  return weights.map((heads, layer) => (isOff(layer) ? [] : heads.map((row) => row.slice(0, position + 1))));
}

const jobs = {
  async *next({ settings, unit, ...text }, signal) {
    await pause(signal);
    const body = { ...promptOf(text), unit, n: SHOWN, return_token_ids: true, truncate_prompt_tokens: -1, ...filters(settings) };
    for (const [i, max_evaluations] of (unit === "words" ? [QUICK_EVALUATIONS, null] : [null]).entries()) {
      const { next, tokens, prefix_tokens } = await fetchJson("/v1/next", { ...body, max_evaluations }, signal);
      for (const token of tokens) knownTokens.set(token.id, token);
      const prefix = text.ids ? text.prefix : text.text ? prefix_tokens : tokens.length;
      if (i === 0) yield { tokens: { ids: tokens.map(({ id }) => id), prefix, labels: tokens.slice(prefix).map((one) => one.text) } };
      yield answerOf(next.map(({ bytes, added = decode(bytes), ...one }) => ({ ...one, text: (unit === "tokens" && added) || one.text, added })));
    }
  },

  async *generate({ settings, count, ...text }, signal) {
    const body = { ...promptOf(text), logprobs: 0, truncate_prompt_tokens: -1, ...sampling(settings), max_tokens: count };
    let ids = [], prefix = 0;
    for await (const choice of streamed("/v1/completions", body, signal)) {
      if (choice.prompt_token_ids) {
        ids = choice.prompt_token_ids;
        prefix = text.ids ? text.prefix : text.text ? choice.prompt_prefix_tokens : ids.length;
      }
      const added = idsOf(choice);
      ids = [...ids, ...added];
      if (choice.text) yield { piece: choice.text, ids, prefix, count: added.length };
      if (choice.finish_reason) yield { end: choice.finish_reason };
    }
  },

  async *inside({ without, target, ...text }, signal) {
    await pause(signal);
    const body = { ...promptOf(text), without, n: PAIRS, truncate_prompt_tokens: -1 };
    const ask = (include, more) => fetchJson("/v1/explain", { ...body, include, ...more }, signal);
    const quick = await ask(["next", "attention"], { position: -1, max_evaluations: QUICK_EVALUATIONS });
    const pairs = pairsOf(quick, false), chosen = chosenPair(pairs, target);
    body.token_id = chosen.id;
    const isExplained = (quick.second ?? quick).attribution.id === chosen.id, answer = isExplained ? quick : await ask(["attention"], { position: -1 });
    const one = answer.second ?? answer, { tail, tokens, entropy_bits: entropy, attribution: { text: token, embedding, layers } } = one;
    explained = body;
    yield { pairs, chosen, token, tail, entropy, expert: answer.expert };
    const attribution = { embedding, heads: layers.map(({ heads }) => heads), mlp: layers.map(({ mlp }) => mlp) };
    const shown = { lens: lensOf(one, without), attribution, attention: attentionOf(answer, tokens.length - 1) };
    yield { labels: tokens.map((token) => token.text), ...shown };
    const all = pairsOf(await ask(["next"]), true);
    yield { pairs: all, chosen: all.find((pair) => pair.text === chosen.text) ?? chosen, token, tail, entropy, expert: answer.expert };
    const { second, ...first } = await ask(["effects"]);
    yield { effects: (second ?? first).tokens.map(({ effect_bits: bits }) => bits) };
  },

  async *compare({ texts, without }, signal) {
    await pause(signal);
    const body = { ...promptOf(texts[0]), compare: promptOf(texts[1]).prompt, without, n: PAIRS, truncate_prompt_tokens: -1 };
    const quick = await fetchJson("/v1/explain", { ...body, include: ["next"], max_evaluations: QUICK_EVALUATIONS }, signal);
    yield { lenses: [quick.first, quick.second].map((one) => ({ token: one.attribution.text, lens: lensOf(one, without) })) };
    yield { pairs: pairsOf(quick, false) };
    yield { pairs: pairsOf(await fetchJson("/v1/explain", { ...body, include: ["next"] }, signal), true) };
  },

  async *chat({ messages, settings }, signal) {
    const system = settings.system ? [{ role: "system", content: settings.system }] : [];
    const turns = messages.map((content, i) => ({ role: i % 2 ? "assistant" : "user", content }));
    const body = { messages: [...system, ...turns], logprobs: true, stream_options: { include_usage: true }, ...sampling(settings) };
    let content = "", ids = [], prefix = 0;
    for await (const choice of streamed("/v1/chat/completions", body, signal)) {
      const { usage, finish_reason: end } = choice;
      if (choice.prompt_token_ids) [ids, prefix] = [choice.prompt_token_ids, choice.prompt_token_ids.length];
      ids = [...ids, ...idsOf(choice)];
      content += choice.delta?.content ?? "";
      yield usage ? { dropped: usage.dropped_turns ?? 0 } : { content, ids, prefix, end };
    }
  },
};

// Requests that are answered beside a job.
const atOnce = {
  async open({ model }) {
    const models = (await fetchJson("/v1/models")).data.map(({ id }) => id), before = model ?? remembered("llm.model");
    const name = models.includes(before) ? before : models[0], path = `/v1/models/${encodeURIComponent(name)}`;
    store("llm.model", name);
    const [page, examples] = await Promise.all([fetchJson(`${path}/page`), fetchJson(`${path}/examples`)]);
    showInvitation(page.class);
    knownTokens.clear();
    explained = null;
    const colorings = ["probability", "memory", ...(page.experts.length ? ["experts"] : [])];
    return { facts: { ...page, models, examples, isServed: true, colorings } };
  },

  async alternatives({ prefix, position, ...state }) {
    const { ids } = state;
    if (position === 0) return { choices: [] };
    const body = { ...promptOf({ ids: ids.slice(0, position), written: writtenBefore(position, state) }), unit: "tokens", n: SHOWN, token_id: ids[position], truncate_prompt_tokens: -1 };
    const { next, token } = await fetchJson("/v1/next", body);
    const listed = next.some(({ id }) => id === token.id) ? next : [...next, token];
    const before = ids.slice(prefix, position).flatMap((id) => knownTokens.get(id).bytes);
    return { rank: token.rank, choices: listed.map(({ id, text: label, bytes, probability }) => (
      { id, label, probability, text: bytes.length ? withoutSpace(decode([...before, ...bytes]), data) : null }
    )) };
  },

  async attention({ position }) {
    const found = await fetchJson("/v1/explain", { ...explained, include: ["attention"], position });
    return { attention: attentionOf(found, position) };
  },

  // What the tokens of the text are colored by: {marks: [{share, hue}], legend: a text of the page}.
  async color({ prefix, kind, ...state }) {
    const { ids } = state, first = Math.max(1, prefix), marks = ids.map(() => null);
    coloring.abort();
    coloring = new AbortController();
    if (kind === "probability") {
      const { signal } = coloring, windows = colorWindows(ids.length, data.context, data.config.parameters);
      for (const { start, from, end } of windows) {
        const window = lastTokens(ids.slice(0, end), end - start, data.bos_ids), body = promptOf({ ids: window, written: writtenBefore(end, state) });
        const { choices: [{ logprobs }] } = await fetchJson("/v1/completions", { ...body, max_tokens: 0, echo: true, logprobs: 0 }, signal);
        for (let i = from; i < end; i++) marks[i] = { probability: Math.exp(logprobs.token_logprobs[i - start]) };
      }
      return { marks: marks.slice(prefix), legend: colorLegend(ids.length, windows) };
    } else if (kind === "memory") {
      const decoder = new TextDecoder(), texts = ids.slice(prefix).map((id) => decoder.decode(new Uint8Array(knownTokens.get(id).bytes), { stream: true }));
      const { spans, share, corpus } = await fetchJson("/v1/memory", { text: texts.join("") });
      let at = 0; // spans count characters, not UTF-16 units
      const verbatim = texts.map((text) => { const start = at; at += [...text].length; return spans.some((span) => span.start < at && span.end > start); });
      return { marks: verbatim.map((is) => (is ? { share: 1, hue: 145 } : null)), legend: ["memoryLegend", { share: Math.round(100 * share), corpus: (corpus ?? []).slice(0, 3).join(", ") }] };
    } else {
      const { experts, weights } = await fetchJson("/v1/experts", { prompt: ids.slice(0, first), token_ids: ids.slice(first) });
      const top = weights.map((row) => row.indexOf(Math.max(...row)));
      top.forEach((expert, i) => { marks[i + first] = { share: 1, hue: (expert * 137) % 360, note: experts[expert] }; });
      const shares = experts.map((name, i) => `${name} ${Math.round((100 * top.filter((one) => one === i).length) / Math.max(1, top.length))}%`);
      return { marks: marks.slice(prefix), legend: ["expertsLegend", { shares: shares.join(", ") }] };
    }
  },
};
program.postMessage = answering(jobs, atOnce, (data) => program.onmessage({ data }));
