// Text <-> token ids. The bytes of a text or a token are a "byte string" here: a string that has a character from U+0000
// to U+00FF for each byte.
const toBytes = (text) => Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
function byteArray(bytes) {
  const array = new Uint8Array(bytes.length);
  for (let i = 0; i < bytes.length; i++) array[i] = bytes.charCodeAt(i);
  return array;
}
const newDecoder = () => new TextDecoder("utf-8", { ignoreBOM: true });
const toText = (bytes) => newDecoder().decode(byteArray(bytes));
// The text of bytes, without a character at the end that is not complete.
const completeText = (bytes) => (/[\x80-\xff]/.test(bytes) ? newDecoder().decode(byteArray(bytes), { stream: true }) : bytes);
const LAST_WORD = /[\p{White_Space}\x1c-\x1f]*[^\p{White_Space}\x1c-\x1f]*$/u; // white space as Python has it
const MAX_TAIL = 200; // characters at the end of a text that are searched for its last word

class Tokenizer {
  // `data` is what `tokenizer_data` of live_page.py writes: the kind ("bpe": byte-level, "spm": SentencePiece, "char"), the
  // byte string of each token, "" for control tokens, and more.
  constructor(data) {
    Object.assign(this, data);
    const isOther = new Set([...data.added.map(([, id]) => id), ...(data.kind === "bpe" ? [] : data.byte_ids)]);
    this.ids = new Map(); // byte string -> token, without the tokens that stand for single bytes if others are characters
    data.tokens.forEach((bytes, id) => bytes && !isOther.has(id) && this.ids.set(bytes, id));
    this.ranks = new Map(); // pair of tokens -> its rank; pairs of a lower rank are merged first
    for (let i = 0; i < data.merges.length; i += 3) this.ranks.set(this.pair(data.merges[i], data.merges[i + 1]), i / 3);
    this.splits = data.splits.map((pattern) => new RegExp(pattern, "gu"));
    const literal = (text) => text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&");
    this.addedPattern = data.added.length ? new RegExp(`(${data.added.map(([text]) => literal(text)).join("|")})`, "u") : null;
    this.known = new Map(); // word -> ids, of words that were encoded before
  }
  pair(left, right) { return left * this.tokens.length + right; }

  // The ids of a text; the name of a control token is ordinary text.
  encode(text) {
    return this.encodeParts(this.prefix_space && text ? " " + text : text);
  }

  // The ids of a text that a chat template puts between control tokens. When SentencePiece puts a space before it is said in
  // `prefix_space` of tokenizer_json.py.
  encodePart(text, afterControlToken) {
    const hasSpace = /^[ \u2581]/.test(text), scheme = this.prefix_space;
    const adds = scheme === "prepend" || (!hasSpace && (scheme === "always" || (scheme === "first" && !afterControlToken)));
    return this.encodeParts(adds && text ? " " + text : text);
  }

  encodeParts(text) {
    if (this.is_nfc) text = text.normalize("NFC");
    const parts = this.addedPattern ? text.split(this.addedPattern) : [text]; // each second one is an added token
    return parts.flatMap((part, i) => (i % 2 ? this.added.find(([name]) => name === part)[1]
      : this.words(part).flatMap((word) => this.encodeWord(word))));
  }

  // The pre-tokens of a text: no token crosses the end of one.
  words(text) {
    if (this.kind === "spm") return [text.replaceAll("\u2581", " ")];
    if (this.kind === "char") return [...text];
    return this.splits.reduce((parts, pattern) => parts.flatMap((part) => part.match(pattern) ?? []), [text]);
  }

  encodeWord(word) {
    const before = this.known.get(word);
    if (before) return before;
    const whole = this.ignore_merges ? this.ids.get(toBytes(word)) : undefined;
    const ids = whole === undefined ? this.merge(this.symbols(word)) : [whole];
    if (word.length < 50) this.known.set(word, ids);
    return ids;
  }

  // What is merged: bytes, or characters, and the bytes of those that are no token.
  symbols(word) {
    const ofBytes = (text) => [...toBytes(text)].map((byte) => {
      const id = this.byte_ids[byte.charCodeAt(0)];
      if (id < 0) throw new Problem("noByteToken", { byte: `0x${byte.charCodeAt(0).toString(16)}` });
      return id;
    });
    return this.kind === "bpe" ? ofBytes(word) : [...word].flatMap((character) => this.ids.get(toBytes(character)) ?? ofBytes(character));
  }

  // Byte-pair encoding: merges the pair of the lowest rank, of several the leftmost, until no pair is left. One pass merges all of
  // them, up to one that makes a pair of a lower rank: a word may have a million bytes.
  merge(ids) {
    const rank = (left, right) => this.ranks.get(this.pair(left, right)) ?? Infinity;
    for (;;) {
      let lowest = Infinity, i = 0, isLower = false;
      for (let j = 1; j < ids.length; j++) lowest = Math.min(lowest, rank(ids[j - 1], ids[j]));
      if (lowest === Infinity) return ids;
      const token = this.merges[3 * lowest + 2], merged = [];
      while (i < ids.length && !isLower) {
        const isPair = rank(ids[i], ids[i + 1]) === lowest;
        merged.push(isPair ? token : ids[i]);
        i += isPair ? 2 : 1;
        isLower = isPair && Math.min(rank(merged.at(-2), token), rank(token, ids[i])) < lowest;
      }
      ids = merged.concat(ids.slice(i));
    }
  }

  // The text before the last word, and the last word, of which no token is in both.
  splitLastWord(text) {
    if (this.kind === "char" || !text) return [text, ""];
    const end = [...text].slice(-MAX_TAIL).join("");
    const word = this.kind === "spm" ? end.match(LAST_WORD)[0] : this.words(end).at(-1);
    return [text.slice(0, text.length - word.length), word];
  }

  // A token for display: bytes of an incomplete character as \xe3, a control token by its name.
  label(id) {
    if (!this.tokens[id]) return this.control_names[id] ?? "";
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(byteArray(this.tokens[id]));
    } catch {
      return this.tokens[id].replace(/[\x80-\xff]/g, (byte) => "\\x" + byte.charCodeAt(0).toString(16));
    }
  }
}
