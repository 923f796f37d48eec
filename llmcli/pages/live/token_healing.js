// A prompt may end inside a token or a word: a model knows " eat", and has never seen " ea" followed by "t". So the
// probability of what follows is summed over the token sequences that spell the end of the prompt, each weighted by its own
// probability; the last token of a sequence may extend beyond the prompt. token_healing.py of llmcli says more.
const MAX_TAIL_TOKENS = 3; // at the end of a prompt that may be tokenized differently
const MAX_HEALING_EVALUATIONS = 8, MAX_HEALING_WORK = 150_000_000; // when text is generated; work: evaluations x parameters
const NEGLIGIBLE = 1e-3; // sequences less likely than this share of the total are not followed
const NEGLIGIBLE_ENTRY = 1e-9; // less likely ways to go on are left out
const CONTINUE_WORD_FACTOR = 0.4; // people end a prompt at the end of a word more often than a random cut would

// The tokens of a text: {head, tail, inWord, prefix}. The tail may be tokenized differently; `inWord` says that the last word may
// continue; the first `prefix` tokens stand for the beginning of a text, and are all tokens of an empty one.
function readText(text, tokenizer) {
  if (!text) return { head: tokenizer.beginning, tail: [], inWord: false, prefix: tokenizer.beginning.length };
  const [before, lastWord] = tokenizer.splitLastWord(text);
  // without a token for the beginning of a text, a line break stands in for it
  const line = before || tokenizer.bos_ids.length ? [] : tokenizer.encode("\n");
  const ids = [...tokenizer.bos_ids, ...line, ...tokenizer.encode(text)];
  let cut = ids.length, bytes = toBytes(lastWord).length; // the tail begins at `cut`, inside the last word
  while (cut > Math.max(1, ids.length - MAX_TAIL_TOKENS) && (bytes -= tokenizer.tokens[ids[cut - 1]].length) >= 0) cut--;
  const inWord = characterClass([...text].at(-1)) === "letters";
  return { head: ids.slice(0, cut), tail: ids.slice(cut), inWord, prefix: tokenizer.bos_ids.length + line.length };
}

// The end of a prompt that fits `space` tokens, as {head, tail}; `before` are all tokens before the tail, also those that do not fit.
// The model wrote the last `written` tokens of the head.
function splitPrompt({ head, tail, written }, space, bosIds) {
  const ids = [...head, ...tail], room = Math.max(1, space), kept = room > 1 ? tail.slice(-(room - 1)) : [];
  const before = ids.slice(0, ids.length - kept.length);
  return { before, head: lastTokens(before, room - kept.length, bosIds), tail: kept, written };
}

// Best-first search for the token sequences that spell the tail of a prompt.
class Search {
  constructor(runtime, vocabulary, { before, head, tail, written }, inWord) {
    Object.assign(this, { runtime, vocabulary, before, head, inWord });
    this.aligned = []; // sequences that end with the prompt: {logprob, path, logits}
    this.crossing = []; // sequences whose last token extends beyond the prompt: {logprob, path, inside, token}
    this.logTotal = -Infinity; // of the probabilities of both
    this.open = []; // sequences to follow: {logprob, path, spelled}
    this.tooLong = -Infinity; // of the probability of sequences that do not fit the context
    this.space = runtime.context - head.length;
    this.text = tail.map((id) => vocabulary.tokens[id]).join("");
    this.state = vocabulary.stateAfterTokens(head); // of the UTF-8 decoder where the tail begins
    // reads the prompt, and expands every prefix of the tail's own tokenization
    const rows = [runtime.read(head.slice(runtime.begin(head, written)))];
    if (tail.length) rows.push(...runtime.read(tail, { every: true }));
    this.evaluations = tail.length ? 2 : 1;
    let logprob = 0, spelled = 0;
    rows.forEach((logits, i) => {
      const logprobs = this.expand(logprob, tail.slice(0, i), spelled, logits, tail[i]);
      if (i === tail.length) return;
      logprob += logprobs(tail[i]);
      spelled += vocabulary.tokens[tail[i]].length;
    });
    if (this.logTotal === -Infinity) { // the prompt is impossible under the model: its own tokenization is used
      this.aligned = [{ logprob: 0, path: tail, logits: rows.at(-1).subarray(0, vocabulary.tokens.length) }];
      this.logTotal = 0;
    }
  }

  // Follows the most likely sequences. Returns the share of the probability that the others have, at most.
  async run(most, negligible, check) {
    while (this.evaluations < most && this.open.length) {
      const best = this.open.reduce((a, b) => (b.logprob > a.logprob ? b : a));
      if (Math.exp(Math.min(0, best.logprob - this.logTotal)) <= negligible) break;
      await check();
      this.open.splice(this.open.indexOf(best), 1);
      this.expand(best.logprob, best.path, best.spelled, this.logitsAfter(best.path));
    }
    const left = logSumExp([...this.open.map(({ logprob }) => logprob), this.tooLong]);
    return left === -Infinity ? 0 : Math.exp(left - logSumExp([left, this.logTotal]));
  }

  // The logits after the head and the tokens of `path`.
  logitsAfter(path) {
    this.evaluations++;
    const known = this.runtime.reuse([...this.head, ...path]) - this.head.length;
    return this.runtime.read(path.slice(Math.max(0, known)));
  }

  // Continues a sequence with every token that fits the text, except `skipped`. Returns the log probability of a token.
  expand(logprob, path, spelled, allLogits, skipped) {
    const { vocabulary } = this, logits = allLogits.subarray(0, vocabulary.tokens.length), total = logSumExp(logits);
    const rest = this.text.slice(spelled), logprobs = (token) => logits[token] - total;
    if (!rest) {
      this.aligned.push({ logprob, path, logits });
      this.logTotal = logSumExp([this.logTotal, logprob]);
      return logprobs;
    }
    const allowed = vocabulary.allowed(validStateAfter(this.text.slice(0, spelled), this.state));
    for (const token of vocabulary.extensionsOf(rest)) {
      if (allowed && !allowed[token]) continue;
      this.crossing.push({ logprob: logprob + logprobs(token), path, inside: rest.length, token });
      this.logTotal = logSumExp([this.logTotal, logprob + logprobs(token)]);
    }
    for (const token of vocabulary.prefixesOf(rest)) {
      if (token === skipped) continue;
      const end = spelled + vocabulary.tokens[token].length;
      const one = { logprob: logprob + logprobs(token), path: [...path, token], spelled: end };
      if (path.length < this.space) this.open.push(one);
      else this.tooLong = logSumExp([this.tooLong, one.logprob]);
    }
    return logprobs;
  }

  // What may follow the prompt: bytes -> {logit, continuations: [{probability, path, added}]}, of all sequences that add
  // the same bytes; `path` are the tokens after the head. A control token has an entry of its own.
  entries() {
    const { vocabulary, inWord, text, state } = this, entries = new Map();
    const allowed = vocabulary.allowed(text ? START : state); // of the decoder at the end of the prompt
    const put = (key, probability, path, added) => {
      if (probability < NEGLIGIBLE_ENTRY) return;
      if (!entries.has(key)) entries.set(key, []);
      entries.get(key).push({ probability, path, added });
    };
    for (const { logprob, path, logits } of this.aligned) {
      const weight = Math.exp(logprob - this.logTotal);
      softmax(logits).forEach((probability, id) => {
        const factor = allowed && !allowed[id] ? 0 : inWord && vocabulary.continuesWord[id] ? CONTINUE_WORD_FACTOR : 1;
        put(id, weight * factor * probability, [...path, id], vocabulary.tokens[id]);
      });
    }
    for (const { logprob, path, inside, token } of this.crossing) {
      const added = vocabulary.tokens[token].slice(inside);
      const factor = inWord && beginsWithLetter(added) ? CONTINUE_WORD_FACTOR : 1;
      put(vocabulary.byBytes.get(added)?.[0] ?? added, factor * Math.exp(logprob - this.logTotal), [...path, token], added);
    }
    return entries;
  }
}

// Reads a prompt. Returns {search, unexplored, choices: [{probability, continuations}]}: what may follow it, the most
// likely first; the probabilities are those under `settings`, of the choices and of their continuations.
async function readPrompt(runtime, vocabulary, prompt, settings, check, options = {}) {
  const usual = 2 + Math.min(MAX_HEALING_EVALUATIONS, Math.floor(MAX_HEALING_WORK / runtime.model.config.parameters));
  const { most = usual, negligible = NEGLIGIBLE, reserve = 0 } = options;
  const search = new Search(runtime, vocabulary, splitPrompt(prompt, runtime.context - reserve, vocabulary.tokenizer.bos_ids), prompt.inWord);
  const unexplored = await search.run(most, negligible, check);
  const isToken = ([key]) => typeof key === "number"; // others are bytes that no token adds by itself
  const found = [...search.entries()], tokens = found.filter(isToken).sort(([a], [b]) => a - b);
  const entries = [...tokens, ...found.filter((one) => !isToken(one))];
  const sums = entries.map(([, continuations]) => continuations.reduce((sum, { probability }) => sum + probability, 0));
  const chances = samplingProbabilities(Float64Array.from(sums, Math.log), settings);
  const choices = entries.map(([, continuations], i) => ({
    probability: chances[i],
    continuations: continuations.map((one) => ({ ...one, probability: (one.probability / sums[i]) * chances[i] }))
      .sort((a, b) => b.probability - a.probability),
  }));
  return { search, unexplored, choices: choices.filter(({ probability }) => probability > 0) };
}
