// Which tokens a model may generate: the text stays valid UTF-8 and has only byte values that occur in the training text,
// and the only control tokens are those that end a text. Models of other programs are not restricted.

// States of a UTF-8 decoder: START is between two characters, the others are inside one (Unicode, table 3-7).
const START = 0, INVALID = -1;
const INSIDE = { // state -> lowest and highest byte that may follow, next state
  1: [0x80, 0xbf, START], 2: [0x80, 0xbf, 1], 3: [0x80, 0xbf, 2], 4: [0xa0, 0xbf, 1], 5: [0x80, 0x9f, 1], 6: [0x90, 0xbf, 2], 7: [0x80, 0x8f, 2],
};
const FIRST = [
  [0x00, 0x7f, START], [0xc2, 0xdf, 1], [0xe0, 0xe0, 4], [0xed, 0xed, 5], [0xe1, 0xef, 2], [0xf0, 0xf0, 6], [0xf1, 0xf3, 3], [0xf4, 0xf4, 7],
];

// The state after more bytes; INVALID if they are not UTF-8.
function stateAfter(bytes, state = START) {
  for (const character of bytes) {
    const byte = character.charCodeAt(0), rules = state === START ? FIRST : [INSIDE[state]];
    state = rules.find(([low, high]) => low <= byte && byte <= high)?.[2] ?? INVALID;
    if (state === INVALID) break;
  }
  return state;
}

// The state after more bytes, where those that are not UTF-8 end the character.
const validStateAfter = (bytes, state) => Math.max(START, stateAfter(bytes, state));

const BLOCKS = {
  han: /[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{3ffff}]/u,
  hiragana: /[\u3041-\u309f]/u,
  katakana: /[\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f]/u,
  letters: /[\p{L}\p{N}\p{M}_]/u,
};

// A word is a run of characters of one class; a character of class "single" is a word by itself.
function characterClass(character) {
  return Object.keys(BLOCKS).find((name) => BLOCKS[name].test(character)) ?? "single";
}

// Whether bytes begin with a letter or digit of a script that puts spaces between words. Of an incomplete character, the
// first byte decides.
function beginsWithLetter(bytes) {
  if (bytes.charCodeAt(0) < 0x80) return /^[A-Za-z0-9_]/.test(bytes);
  const [character] = toText(bytes.slice(0, 4)).replaceAll("\ufffd", "");
  return character ? characterClass(character) === "letters" : bytes >= "\xc3" && bytes < "\xe0";
}

class Vocabulary {
  constructor(tokenizer) {
    this.tokens = tokenizer.tokens;
    this.tokenizer = tokenizer;
    this.masks = new Map(); // state -> which tokens may be generated
    this.byBytes = new Map(); // byte string -> tokens
    this.tokens.forEach((bytes, id) => bytes && this.byBytes.set(bytes, [...(this.byBytes.get(bytes) ?? []), id]));
    this.longest = this.tokens.reduce((longest, bytes) => Math.max(longest, bytes.length), 0);
    this.continuesWord = this.tokens.map((bytes) => bytes !== "" && beginsWithLetter(bytes));
  }

  // The tokens whose bytes are a prefix of `bytes`, or all of it.
  prefixesOf(bytes) {
    return Array.from({ length: Math.min(bytes.length, this.longest) }, (_, i) => this.byBytes.get(bytes.slice(0, i + 1)) ?? []).flat();
  }

  // The tokens that are longer than `bytes`, and begin with it.
  extensionsOf(bytes) {
    return [...this.tokens.keys()].filter((id) => this.tokens[id].length > bytes.length && this.tokens[id].startsWith(bytes));
  }

  // For each token whether it may be generated in a state; null if all may be.
  allowed(state) {
    const { is_imported, seen_bytes: seen, eos_ids: ends } = this.tokenizer;
    if (is_imported || this.masks.has(state)) return this.masks.get(state) ?? null;
    const isSeen = new Set(seen), mask = this.tokens.map((bytes, id) => {
      const fits = bytes ? stateAfter(bytes, state) !== INVALID : state === START && ends.includes(id);
      return fits && (!seen || [...bytes].every((byte) => isSeen.has(byte.charCodeAt(0))));
    });
    this.masks.set(state, mask.includes(true) && mask.includes(false) ? mask : null);
    return this.masks.get(state);
  }

  // The logits of the tokens that may be generated; -Infinity for the others, and without rows that no token uses.
  maskLogits(logits, state) {
    const allowed = this.allowed(state), own = Float64Array.from(logits.subarray(0, this.tokens.length));
    return allowed ? own.map((logit, id) => (allowed[id] ? logit : -Infinity)) : own;
  }

  stateAfterTokens(ids) {
    const bytes = ids.slice(-4).map((id) => this.tokens[id]).join("").slice(-4); // may begin inside a character
    const start = bytes.search(/[^\x80-\xbf][\x80-\xbf]*$/);
    return this.tokenizer.is_imported || start < 0 ? START : validStateAfter(bytes.slice(start));
  }
}
