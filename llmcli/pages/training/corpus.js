// The text to train on: its encoding, its held-out part, its tokenizer, and batches of its tokens.
const MIN_TEXT_BYTES = 300, MAX_TEXT_BYTES = 1_000_000;
const MIN_TRAINING_TOKENS = 64;
const MAX_VOCABULARY = 512; // tokens of BPE
const MAX_CHARACTERS = 2048; // tokens that are characters; rarer ones are bytes
const MIN_PAIRS = 2; // occurrences of a pair that is merged
const MAX_TOKEN_BYTES = 63;
const TRAINING_WORD = /.{1,256}/gsu; // a longer word is cut for the training of a tokenizer
// Encodings that are tried if a text is not UTF-8, in this order: a share of its letters must be of this kind.
const ENCODINGS = [
  ["shift_jis", /[\u3040-\u30ff]/u, 0.2], ["euc-jp", /[\u3040-\u30ff]/u, 0.2], ["euc-kr", /\p{Script=Hangul}/u, 0.6], ["gb18030", /\p{Script=Han}/u, 0.6],
  ["big5", /\p{Script=Han}/u, 0.6], ["windows-1251", /[а-яё]/u, 0.6], ["windows-1252", /\p{Script=Latin}/u, 0.9],
];

// The text of a file, and its encoding. Throws a Problem for bytes that are no text.
function decodeText(bytes) {
  const decode = (encoding) => {
    try { return new TextDecoder(encoding, { fatal: true }).decode(bytes); } catch { return null; }
  };
  const [first, second] = bytes; // a byte order mark, or a letter of ASCII in UTF-16
  const isLittle = second === 0 || (first === 0xff && second === 0xfe);
  const isBig = first === 0 || (first === 0xfe && second === 0xff);
  let encoding = isLittle ? "utf-16le" : isBig ? "utf-16be" : "utf-8";
  if (encoding === "utf-8" && decode(encoding)?.includes("\x1b$")) encoding = "iso-2022-jp";
  if (decode(encoding) === null) {
    encoding = ENCODINGS.find(([name, kind, share]) => {
      const letters = decode(name)?.match(/\p{L}/gu) ?? [];
      return letters.length && letters.filter((letter) => kind.test(letter)).length >= share * letters.length;
    })?.[0];
  }
  const text = encoding ? decode(encoding) : null;
  const isBinary = encoding === "utf-8" ? /\0/ : /[\0-\x08\x0e-\x19]/; // Ctrl-Z ends files of DOS
  if (text === null || isBinary.test(text)) throw new Problem("textUnreadable");
  return { text, encoding };
}

// Byte-pair encoding (Sennrich et al. 2016): merges the most frequent pair, of several the one of the lowest tokens, until there
// are MAX_VOCABULARY tokens. `data` is a tokenizer of single bytes; it gets the merges.
function trainMerges(data, text) {
  const base = new Tokenizer(data), { tokens, merges } = data;
  const counted = countsOf(base.words(text).flatMap((word) => word.match(TRAINING_WORD)));
  const words = [...counted].map(([word, count]) => ({ ids: base.symbols(word), count }));
  const counts = new Int32Array(MAX_VOCABULARY ** 2); // of the pair left * MAX_VOCABULARY + right
  while (tokens.length < MAX_VOCABULARY) {
    counts.fill(0);
    for (const { ids, count } of words) {
      for (let i = 1; i < ids.length; i++) counts[ids[i - 1] * MAX_VOCABULARY + ids[i]] += count;
    }
    let best = null, most = MIN_PAIRS - 1;
    for (let pair = 0; pair < counts.length; pair++) {
      if (counts[pair] <= most) continue;
      const left = Math.floor(pair / MAX_VOCABULARY), right = pair % MAX_VOCABULARY;
      const bytes = tokens[left] + tokens[right];
      if (bytes.length <= MAX_TOKEN_BYTES) [best, most] = [{ left, right, bytes }, counts[pair]];
    }
    if (!best) break;
    if (!tokens.includes(best.bytes)) tokens.push(best.bytes); // otherwise two pairs spell the same
    const id = tokens.indexOf(best.bytes);
    merges.push(best.left, best.right, id);
    for (const { ids } of words) {
      for (let i = 1; i < ids.length; i++) {
        if (ids[i - 1] === best.left && ids[i] === best.right) ids.splice(i - 1, 2, id);
      }
    }
  }
}

// Characters as tokens: all of ASCII in the text and the most frequent others; the rest is bytes.
function trainCharacters(data, text) {
  const counts = countsOf(text);
  const others = [...counts.keys()].filter((character) => character > "\x7f").sort((a, b) => counts.get(b) - counts.get(a) || a.codePointAt(0) - b.codePointAt(0));
  const kept = [...[...counts.keys()].filter((character) => character <= "\x7f"), ...others.slice(0, MAX_CHARACTERS - data.tokens.length)];
  const bytes = data.tokens.filter((token) => !kept.includes(token) || token > "\x7f");
  data.firstCharacter = bytes.length;
  data.tokens = [...bytes, ...kept.sort((a, b) => a.codePointAt(0) - b.codePointAt(0)).map(toBytes)];
  data.byte_ids = Array.from({ length: 256 }, (_, byte) => data.tokens.indexOf(String.fromCharCode(byte)));
}

// The text of tokenizer.json; `document` is that of a tokenizer without merges.
function tokenizerJson(document, data) {
  const names = new Map(Object.entries(document.model.vocab).map(([name, id]) => [id, name])), isBpe = data.kind === "bpe", merges = [];
  if (isBpe) {
    for (let i = 0; i < data.merges.length; i += 3) {
      const [left, right, id] = data.merges.slice(i, i + 3);
      merges.push([names.get(left), names.get(right)]);
      names.set(id, names.get(left) + names.get(right));
    }
  }
  const hex = (bytes) => `<0x${bytes.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}>`;
  const nameOf = (bytes, id) => data.control_names[id] ?? (isBpe ? names.get(id) : id < data.firstCharacter ? hex(bytes) : toText(bytes));
  const vocab = Object.fromEntries(data.tokens.map((bytes, id) => [nameOf(bytes, id), id]));
  return JSON.stringify({ ...document, model: { ...document.model, vocab, merges } });
}

// A text, split and tokenized.
class Corpus {
  // `tokenizers`, by kind, have no merges and no characters yet.
  constructor(bytes, name, kind, { tokenizers, recipe }) {
    if (bytes.length > MAX_TEXT_BYTES) throw new Problem("textTooLarge", { size: bytes.length, maximum: MAX_TEXT_BYTES });
    const { text, encoding } = decodeText(bytes);
    const encoded = new TextEncoder().encode(text), size = encoded.length, characters = [...text];
    if (size < MIN_TEXT_BYTES) throw new Problem("textTooShort", { size, minimum: MIN_TEXT_BYTES });
    if (new Set(characters).size < 2) throw new Problem("oneCharacter", { character: characters[0] });
    let cut = size - Math.round(recipe.held_out * size);
    while ((encoded[cut] & 0xc0) === 0x80) cut++; // to the next character
    const [training, heldOut] = [encoded.subarray(0, cut), encoded.subarray(cut)].map((part) => newDecoder().decode(part));
    this.start = text.slice(0, 200);
    this.data = { ...structuredClone(tokenizers[kind].data), seen_bytes: [...new Set(encoded.subarray(0, cut))].sort((a, b) => a - b) };
    if (kind === "bpe") trainMerges(this.data, training);
    else trainCharacters(this.data, training);
    this.tokenizer = new Tokenizer(this.data);
    this.tokenizerJson = tokenizerJson(tokenizers[kind].document, this.data);
    this.tokens = Int32Array.from(this.tokenizer.encode(training));
    this.heldOutTokens = Int32Array.from([this.data.eos_ids[0], ...this.tokenizer.encode(heldOut)]); // after the end of another text
    const tokens = this.tokens.length;
    if (tokens < MIN_TRAINING_TOKENS) throw new Problem("tooFewTokens", { tokens, minimum: MIN_TRAINING_TOKENS });
    // no pair was left to merge: each word is one token, except in short texts, where most pairs occur once
    this.hasFewWords = kind === "bpe" && this.data.tokens.length < MAX_VOCABULARY && cut > recipe.search_max_bytes;
    this.lengths = this.data.tokens.map((token) => token.length); // of tokens, in bytes
    this.bytesPerToken = cut / tokens;
    this.facts = {
      name, encoding, bytes: size, sha256: sha256(encoded), characters: characters.length, tokens,
      vocabulary: this.data.tokens.length, heldOutBytes: size - cut,
    };
  }
}

// Batches of tokens. An epoch visits each block of `context` tokens once, from a random offset in a random order; the text is circular.
class Batches {
  constructor({ tokens, data }, context, random) {
    Object.assign(this, { tokens, context, random, blocks: [], pairs: new Map() }); // token -> the two that it was merged from
    for (let i = 0; i < data.merges.length; i += 3) this.pairs.set(data.merges[i + 2], data.merges.slice(i, i + 2));
  }

  // `count` blocks, in windows of T tokens, which divides the context: the tokens [R], and those that follow [R]. A share of
  // `split` of the merged tokens is split again (BPE-dropout, arXiv:1910.13267).
  next(count, T, split = 0) {
    const inputs = [], targets = [];
    for (let block = 0; block < count; block++) {
      if (!this.blocks.length) this.shuffle();
      const start = this.blocks.pop();
      for (let first = start; first < start + this.context; first += T) {
        const window = [];
        for (let i = first; window.length <= T; i++) {
          const token = this.tokens[i % this.tokens.length];
          if (split && this.pairs.has(token) && this.random() < split) window.push(...this.pairs.get(token));
          else window.push(token);
        }
        inputs.push(...window.slice(0, T));
        targets.push(...window.slice(1, T + 1));
      }
    }
    return { inputs: Int32Array.from(inputs), targets: Int32Array.from(targets) };
  }

  shuffle() {
    const offset = Math.floor(this.random() * this.tokens.length);
    const drawn = Array.from({ length: Math.floor(this.tokens.length / this.context) }, this.random);
    this.blocks = [...drawn.keys()].sort((a, b) => drawn[a] - drawn[b]).map((block) => offset + block * this.context);
  }
}
