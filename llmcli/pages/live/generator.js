// Prompt -> text: prefill, sample, step. And prompt -> the most likely next words.
const MAX_UNEXPLORED = 0.001; // the search for words stops when less probability than this is unexplored
const MAX_EVALUATIONS = 1000, MIN_EVALUATIONS = 30, MAX_WORK = 5e9; // of the model, and evaluations x parameters
const PROMPT_SHARE = 4; // one in four evaluations is for the tokenizations of the prompt's end
const MAX_OPEN = 4 * MAX_EVALUATIONS; // spellings that are kept; of more, only the most likely will ever be followed
const MAX_WORD_TOKENS = 16; // tokens of the context kept free for the word, at most half of the context
const MIN_PROBABILITY = 1e-7; // less likely spellings stay unexplored
const SHOW_EVERY = 150; // milliseconds between two looks
const END = "<end>"; // the word that stands for the end of the text

// Continues a prompt by up to `count` tokens: yields {piece, ids}, each with all tokens of the text so far, and then
// {end}: "stop", or "length" if it was cut off. `check` is awaited before each token, and may throw to stop.
async function* generate(runtime, vocabulary, prompt, settings, check, count, endIds) {
  const { context } = runtime, { bos_ids } = vocabulary.tokenizer, decoder = newDecoder();
  let ids = [...prompt.head, ...prompt.tail];
  for (let n = 0; n < count; n++) {
    let id, added, logits;
    await check();
    if (n === 0 && (prompt.tail.length || prompt.inWord)) { // the first token may begin inside the prompt
      const { search, choices } = await readPrompt(runtime, vocabulary, prompt, settings, check);
      const { continuations } = choices[draw(choices.map(({ probability }) => probability))];
      const place = settings.temperature ? draw(continuations.map(({ probability }) => probability)) : 0;
      const chosen = continuations[place], path = chosen.path.slice(0, -1);
      if (path.length) search.logitsAfter(path); // fills the KV cache up to the chosen token
      else runtime.rewind(search.head.length);
      ids = [...search.before, ...path];
      [id, added] = [chosen.path.at(-1), chosen.added];
    } else {
      if (n === 0) { // prefill: process the prompt
        const last = lastTokens(ids, context, bos_ids);
        logits = runtime.read(last.slice(runtime.begin(last, prompt.written)));
      } else { // step: process the token that was chosen last
        if (runtime.ids.length === context) runtime.shift();
        logits = runtime.read(ids.slice(-1), { counts: false });
      }
      const allowed = vocabulary.maskLogits(logits, vocabulary.stateAfterTokens(ids));
      id = draw(samplingProbabilities(allowed, settings));
      added = vocabulary.tokens[id];
    }
    if (endIds.includes(id)) return yield { end: "stop" };
    ids = [...ids, id];
    yield { piece: decoder.decode(byteArray(added), { stream: true }), ids };
  }
  yield { end: "length" };
}

// The tokens that may follow a prompt, the most likely first: [{probability, path, added}]; the last of `path` is the token.
async function nextTokens(runtime, vocabulary, prompt, settings, check) {
  const { choices } = await readPrompt(runtime, vocabulary, prompt, settings, check);
  const tokens = choices.map(({ probability, continuations: [first] }) => ({ ...first, probability }));
  return tokens.sort((a, b) => b.probability - a.probability);
}

// The words that may follow a prompt, as next_words.py of llmcli finds them: a word may be spelled in several ways, whose
// probabilities are summed. Yields {words, looks} again and again, as it finds more. The words are ranked by probability:
// [{text, probability, continues, added, place}], where `place` is that of the token with which the word most likely begins, as
// in `nextTokens`. `looks` is 1 at the end of a quick search and during the thorough one.
async function* nextWords(runtime, vocabulary, prompt, settings, check) {
  const end = completeText([...prompt.head, ...prompt.tail].slice(-4).map((id) => vocabulary.tokens[id]).join(""));
  const limit = Math.max(MIN_EVALUATIONS, Math.min(MAX_EVALUATIONS, Math.floor(MAX_WORK / runtime.model.config.parameters)));
  const reserve = Math.min(MAX_WORD_TOKENS, Math.floor(runtime.context / 2));
  const thorough = { most: Math.floor(limit / PROMPT_SHARE), negligible: MIN_PROBABILITY };
  let shown = performance.now(), looks = 0;
  for (const [evaluations, options] of [[QUICK_EVALUATIONS, {}], [limit, thorough]]) {
    const read = await readPrompt(runtime, vocabulary, prompt, settings, check, { ...options, reserve });
    const words = new WordSearch(vocabulary, end), { search } = read;
    for (const { continuations } of read.choices) {
      for (const one of continuations) words.begin(one, 1 - read.unexplored);
    }
    while (search.evaluations < evaluations && words.open.length && 1 - words.explored >= MAX_UNEXPLORED) {
      await check();
      if (performance.now() - shown > SHOW_EVERY) {
        shown = performance.now();
        yield { words: words.ranked(), looks };
      }
      const best = words.open.reduce((a, b) => (b.probability > a.probability ? b : a));
      words.open.splice(words.open.indexOf(best), 1);
      if (best.path.length > search.space) continue;
      const logits = vocabulary.maskLogits(search.logitsAfter(best.path), validStateAfter(best.spelled));
      if (logits.every((logit) => logit === -Infinity)) continue;
      samplingProbabilities(logits, settings).forEach((probability, id) => {
        words.put(best.probability * probability, [...best.path, id], best.spelled + vocabulary.tokens[id], best.token);
      });
    }
    yield { words: words.ranked(), looks: ++looks };
    if (1 - words.explored < MAX_UNEXPLORED) return;
  }
}

// The words that were found, and the spellings to follow.
class WordSearch {
  // `end` is the end of the prompt.
  constructor(vocabulary, end) {
    this.ends = vocabulary.tokenizer.eos_ids;
    this.inWord = characterClass([...end].at(-1) ?? "\n") === "letters";
    this.words = new Map(); // each has its probability by the first token
    this.places = new Map(); // first token -> its likeliest place: {probability, path, added}
    this.open = []; // {probability, path, spelled, token}
    this.explored = 0; // sum of the probabilities of the words
  }

  // Adds a first token with its place, one of those that share this part of the probability.
  begin(place, share) {
    const token = place.path.at(-1);
    if (place.probability > (this.places.get(token)?.probability ?? 0)) this.places.set(token, place);
    this.put(place.probability * share, place.path, place.added, token);
  }

  // Adds a spelling that begins with a token: it is counted if its first word is complete, and followed later if not.
  put(probability, path, spelled, token) {
    if (probability < MIN_PROBABILITY) return;
    const found = firstWord(spelled, this.ends.includes(path.at(-1)));
    if (!found) {
      this.open.push({ probability, path, spelled, token });
      if (this.open.length > MAX_OPEN) this.open = this.open.sort((a, b) => b.probability - a.probability).slice(0, MAX_EVALUATIONS);
      return;
    }
    const { word, space } = found, continues = this.inWord && !space && characterClass([...word][0]) === "letters";
    const key = `${continues} ${word}`;
    if (!this.words.has(key)) this.words.set(key, { text: word, continues, added: word === END ? "" : space + word, byToken: new Map() });
    const { byToken } = this.words.get(key);
    byToken.set(token, (byToken.get(token) ?? 0) + probability);
    this.explored += probability;
  }

  ranked() {
    const words = [...this.words.values()].map(({ byToken, ...word }) => {
      const tokens = [...byToken.keys()], token = tokens.reduce((a, b) => (byToken.get(b) > byToken.get(a) ? b : a));
      return { ...word, place: this.places.get(token), probability: tokens.reduce((sum, one) => sum + byToken.get(one), 0) };
    });
    return words.sort((a, b) => b.probability - a.probability || (a.text < b.text ? -1 : 1));
  }
}

// {word, space} of the first word of some bytes, and the white space before it; null if it is not complete yet. `ended`: the
// text ends after them.
function firstWord(spelled, ended) {
  const decoded = completeText(spelled);
  const [space] = decoded.match(/^[ \t\u3000]*/), characters = [...decoded.slice(space.length)];
  if (!characters.length) return ended ? { word: END, space: "" } : null;
  const kind = characterClass(characters[0]);
  if (kind === "single") return { word: characters[0], space };
  const isLetter = (character) => character === undefined || characterClass(character) === "letters";
  const continues = (character, i) => characterClass(character) === kind || /\p{M}/u.test(character)
    || (kind === "katakana" && character === "ー") || (kind === "letters" && /['’]/.test(character) && isLetter(characters[i + 1]));
  const end = characters.findIndex((character, i) => i > 0 && !continues(character, i));
  if (end > 0) return { word: characters.slice(0, end).join(""), space };
  return ended ? { word: characters.join("").replace(/['’]+$/, ""), space } : null;
}

// ---- conversations

// The ids of a conversation up to its next answer. `chat` has the parts of the chat template, control tokens as ids; the user
// begins, and the two take turns.
function encodeConversation(chat, messages, tokenizer) {
  const contents = messages.map((content) => (chat.trims ? content.trim() : content));
  const parts = contents.flatMap((content, i) => [...(i === 0 ? chat.begin : i % 2 ? chat.answer : chat.next), content]);
  const joined = [];
  for (const part of [...parts, ...chat.prompt]) {
    if (typeof part === "string" && typeof joined.at(-1) === "string") joined[joined.length - 1] += part;
    else joined.push(part);
  }
  return joined.flatMap((part, i) => (typeof part === "number" ? [part] : tokenizer.encodePart(part, i > 0)));
}

// As `encodeConversation`; where a quarter of the context would not be free for the answer, the oldest turns are left out until
// half of it is. Returns {ids, dropped}: the number of these turns.
function fitConversation(chat, messages, tokenizer, context) {
  let ids = encodeConversation(chat, messages, tokenizer), dropped = 0, most = context - Math.floor(context / 4);
  while (ids.length > most && 2 * (dropped + 1) < messages.length) {
    ids = encodeConversation(chat, messages.slice(2 * ++dropped), tokenizer);
    most = Math.floor(context / 2);
  }
  return { ids, dropped };
}
