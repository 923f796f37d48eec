// The model in a worker, so that the page never freezes.
let tokenizer, vocabulary, chat;
// Each of these has a KV cache of its own, so that one job does not undo the work of another; the weights are shared.
let runtime, alternativesRuntime; // the whole model
let changed, other; // the model without the parts that are switched off; `other` reads the second of two prompts
let recording; // the network without those parts, and its activations
const { port1, port2 } = new MessageChannel();
const PLAIN = { temperature: 1, topP: 1, minP: 0 }; // the probabilities of the model itself

// Lets messages arrive, and ends a request that another has replaced.
const checkOf = (signal) => async () => {
  await new Promise((resolve) => { port1.onmessage = resolve; port2.postMessage(null); });
  signal.throwIfAborted();
};

// `weights` are base64 in a page, and bytes from a trainer.
function open({ data, weights }) {
  const tensors = readTensors(data.tensors, typeof weights === "string" ? byteArray(atob(weights)).buffer : weights);
  const newModel = () => new Model(data.config, tensors); // the weights are shared
  [runtime, alternativesRuntime, changed, other] = Array.from({ length: 4 }, () => new Runtime(newModel(), data.ngram_cache));
  recording = new Recording(newModel());
  tokenizer = new Tokenizer(data.tokenizer);
  vocabulary = new Vocabulary(tokenizer);
  chat = data.chat;
}

// A text as a prompt; `ids` are its tokens if the model wrote the last `written` of them; `prefix` of them come before the text.
const promptOf = ({ text, ids, prefix, written }) => (
  ids ? { head: ids, tail: [], inWord: false, prefix, written } : readText(text, tokenizer)
);

// A choice of `nextTokens` as the page shows it. `added` is what a click adds to the text.
const shownToken = ({ path, added: bytes, probability }) => {
  const added = completeText(bytes);
  return { text: added || tokenizer.label(path.at(-1)), added, probability };
};

// A choice of `nextTokens` in its place: {token, ids, tail, fits}. Where a prompt ends inside a token, the token begins inside the
// prompt: `ids` are the tokens before it, `tail` the bytes that it shares with the prompt, and `fits` accepts the tokens that
// agree with them.
function placeOf(prompt, { path, added }) {
  const token = path.at(-1), bytes = tokenizer.tokens[token], tail = bytes.slice(0, bytes.length - added.length);
  const fitting = new Set(tail && [...vocabulary.prefixesOf(tail), ...vocabulary.extensionsOf(tail)]);
  const { head } = splitPrompt(prompt, runtime.context, tokenizer.bos_ids);
  return { ids: [...head, ...path.slice(0, -1)], token, tail, fits: (id) => !tail || fitting.has(id) };
}

// The logit lens. Its last row is the prediction itself: of the n-gram cache, which comes after the layers, or of the last layer,
// unless the layers only predict the rest of a token that begins inside the prompt, with `tail`.
function lensOf({ fits, tail }, prediction, hasCache) {
  const rows = recording.lens(fits);
  if (tail && !hasCache) return rows;
  const last = prediction.slice(0, LENS_TOKENS).map(({ path, probability }) => ({ label: tokenizer.label(path.at(-1)), probability }));
  return [...(hasCache ? rows : rows.slice(0, -1)), last];
}

const jobs = {
  async *next({ settings, unit, ...state }, check) {
    const prompt = promptOf(state), all = [...prompt.head, ...prompt.tail];
    yield { tokens: { ids: all, prefix: prompt.prefix, labels: all.slice(prompt.prefix).map((id) => tokenizer.label(id)) } };
    if (unit === "tokens") return yield answerOf((await nextTokens(runtime, vocabulary, prompt, settings, check)).map(shownToken));
    for await (const { words } of nextWords(runtime, vocabulary, prompt, settings, check)) yield answerOf(words);
  },

  async *generate({ settings, count, ...state }, check) {
    const prompt = promptOf(state), { prefix } = prompt;
    const pieces = generate(runtime, vocabulary, prompt, settings, check, count, tokenizer.eos_ids);
    for await (const piece of pieces) yield { ...piece, prefix };
  },

  // What happens inside a prediction without some parts of the model: the first token of the word `target`, or of the likeliest.
  async *inside({ without, target, ...state }, check) {
    const prompt = promptOf(state), runtimes = without.length ? [runtime, changed] : [changed], tokens = [], words = [];
    switchOff(changed, without);
    switchOff(recording, without);
    for (const one of runtimes) tokens.push(await nextTokens(one, vocabulary, prompt, PLAIN, check));
    const searches = runtimes.map((one) => nextWords(one, vocabulary, prompt, PLAIN, check)), after = tokens.at(-1);
    for (const search of searches) { // a quick search finds the likeliest words, at whatever speed it runs
      let found;
      do found = (await search.next()).value; while (!found.looks);
      words.push(found.words);
    }
    const found = (isEnd) => pairs(...[0, runtimes.length - 1].map((i) => wordsOr(words[i], tokens[i])), isEnd), quick = found(false);
    const chosen = chosenPair(quick, target), place = placeOf(prompt, chosen.place), { ids, token, tail, fits } = place;
    const answer = { chosen, token: tokenizer.label(token), tail: toText(tail), entropy: entropy(after) };
    yield { ...answer, pairs: quick };
    await recording.record(ids, check);
    const { first } = recording, labels = ids.slice(first).map((id) => tokenizer.label(id));
    const shown = { lens: lensOf(place, after, changed.cache), attribution: recording.attribution(token) };
    yield { labels, ...shown, attention: recording.attention(labels.length - 1) };
    for (const [i, search] of searches.entries()) for await (const more of search) words[i] = more.words;
    const all = found(true);
    yield { ...answer, pairs: all, chosen: all.find(({ text }) => text === chosen.text) ?? chosen };
    const bits = labels.map(() => null);
    changed.rewind(); // its network is used without the cache
    for await (const [position, lost] of effects(changed.model, ids, token, fits, check)) bits[position - first] = lost;
    yield { effects: bits };
  },

  async *compare({ texts, without }, check) {
    const prompts = texts.map(promptOf), runtimes = [changed, other], words = [[], []];
    const lenses = [];
    for (const one of [...runtimes, recording]) switchOff(one, without);
    for (const [i, prompt] of prompts.entries()) {
      const found = await nextTokens(runtimes[i], vocabulary, prompt, PLAIN, check), place = placeOf(prompt, found[0]);
      await recording.record(place.ids, check);
      lenses.push({ token: tokenizer.label(place.token), lens: lensOf(place, found, changed.cache) });
    }
    yield { lenses };
    const searches = prompts.map((prompt, i) => nextWords(runtimes[i], vocabulary, prompt, PLAIN, check));
    for (let open = [0, 1]; open.length;) { // in turn
      for (const i of open) {
        const { value, done } = await searches[i].next();
        if (done) open = open.filter((one) => one !== i);
        else words[i] = value.words;
      }
      yield { pairs: pairs(...words, !open.length) };
    }
  },

  // Answers the last of some messages; the user wrote the first, and each second one after it.
  async *chat({ messages, settings }, check) {
    const { ids, dropped } = fitConversation(chat, messages, tokenizer, runtime.context);
    const count = runtime.context - ids.length, prompt = { head: ids, tail: [] };
    let text = "";
    if (count <= 0) throw new Problem("messageTooLong", { context: runtime.context });
    yield { ids, prefix: ids.length, dropped };
    const pieces = generate(runtime, vocabulary, prompt, settings, check, count, chat.stop_ids);
    for await (const { piece = "", ...found } of pieces) {
      text += piece;
      yield { content: withoutSpace(text, tokenizer), ...found };
    }
  },
};

const atOnce = {
  open,
  alternatives({ prefix, position, ...state }) {
    const { ids } = state;
    if (position === 0) return { choices: [] };
    const before = lastTokens(ids.slice(0, position), alternativesRuntime.context, tokenizer.bos_ids);
    const known = alternativesRuntime.begin(before, writtenBefore(position, state));
    const logits = alternativesRuntime.read(before.slice(known));
    const allowed = vocabulary.maskLogits(logits, vocabulary.stateAfterTokens(before));
    const probabilities = samplingProbabilities(allowed, PLAIN), ranked = byProbability(probabilities);
    const listed = ranked.slice(0, SHOWN);
    const start = ids.slice(prefix, position).map((id) => tokenizer.tokens[id]).join("");
    const textOf = (bytes) => (bytes ? withoutSpace(completeText(start + bytes), tokenizer) : null); // a control token
    if (!listed.includes(ids[position])) listed.push(ids[position]);
    return { rank: ranked.indexOf(ids[position]) + 1, choices: listed.map((id) => (
      { id, label: tokenizer.label(id), probability: probabilities[id], text: textOf(tokenizer.tokens[id]) }
    )) };
  },
  attention: ({ position }) => ({ attention: recording.attention(position) }),
  color({ prefix, ...state }) {
    const { ids } = state, { context, model } = alternativesRuntime, marks = ids.map(() => null);
    const windows = colorWindows(ids.length, context, model.config.parameters);
    for (const { start, from, end } of windows) {
      const window = lastTokens(ids.slice(0, end), end - start, tokenizer.bos_ids);
      alternativesRuntime.rewind();
      alternativesRuntime.begin(window, writtenBefore(end, state));
      const rows = alternativesRuntime.read(window, { every: true });
      for (let i = from; i < end; i++) {
        const allowed = vocabulary.maskLogits(rows[i - start - 1], vocabulary.stateAfterTokens(ids.slice(start, i)));
        marks[i] = { probability: samplingProbabilities(allowed, PLAIN)[ids[i]] };
      }
    }
    return { marks: marks.slice(prefix), legend: colorLegend(ids.length, windows) };
  },
};

const answerRequest = answering(jobs, atOnce, (answer) => postMessage(answer), checkOf);
onmessage = ({ data }) => answerRequest(data);
