// The n-gram cache, as ngram_cache.py of llmcli describes it: what followed the last 1, 2, ... K tokens earlier in the
// text becomes more likely to follow them again.
const MAX_GATE = 0.999, MAX_GATE_LOGIT = 50;

class NgramCache {
  // `orders`: for each k the four weights of its gate.
  constructor(orders, ids = []) {
    this.orders = orders;
    this.ids = ids.slice();
    this.countFirst(Infinity);
  }

  // Adds a token. One that does not count is context only: tokens that the model writes, or it would repeat itself.
  append(token, mayCount = true) {
    if (mayCount && this.ids.length < this.limit) this.counting.push(this.ids.length);
    this.ids.push(token);
  }

  // Drops all but the first `length` tokens. All that are left count from now on, up to the limit of `countFirst`, which ends
  // with the text: at length 0.
  rewind(length) {
    this.ids.length = Math.min(length, this.ids.length);
    this.countFirst(length ? this.limit : Infinity);
  }

  // Lets only the first tokens of this text count: the model wrote the others.
  countFirst(tokens) {
    this.limit = tokens; // of those that may count
    this.counting = [...this.ids.slice(0, tokens).keys()]; // the positions of those that do
  }

  // The logits of the mixture, from the network's logits after the text.
  mix(logits) {
    const { ids } = this, end = ids.length - 1;
    const added = new Map(); // token -> what the cache adds to the network's probability, before all are normalized again
    let left = 1, positions = this.counting; // of the tokens that followed the last n
    for (const [n, [bias, ofTotal, ofDistinct, ofGap]] of this.orders.entries()) {
      positions = positions.filter((position) => position > n && ids[position - 1 - n] === ids[end - n]);
      const total = positions.length, gap = ids.length - positions.at(-1);
      if (!total) break;
      const counts = countsOf(positions.map((position) => ids[position]));
      const share = counts.size / total;
      const z = bias + ofTotal * Math.log(total) + ofDistinct * Math.log(share) + ofGap * Math.log(gap);
      const gate = Math.min(MAX_GATE, 1 / (1 + Math.exp(-Math.max(z, -MAX_GATE_LOGIT))));
      left *= 1 - gate;
      for (const [token, count] of counts) added.set(token, (added.get(token) ?? 0) + (gate / (left * total)) * count);
    }
    if (!added.size) return logits;
    const logTotal = logSumExp(logits), mixed = logits.slice();
    for (const [token, share] of added) mixed[token] = logSumExp([logits[token], logTotal + Math.log(share)]);
    return mixed;
  }
}

function countsOf(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}

function logSumExp(values) {
  const highest = values.reduce((a, b) => Math.max(a, b), -Infinity);
  if (highest === -Infinity) return highest;
  return highest + Math.log(values.reduce((sum, value) => sum + Math.exp(value - highest), 0));
}

// A network with its n-gram cache, if it has one, and the tokens that it has processed.
class Runtime {
  constructor(model, orders) {
    this.model = model;
    this.newCache = (ids) => orders && new NgramCache(orders, ids);
    this.cache = this.newCache();
    this.ids = []; // in the KV cache
    this.isShifted = false; // whether the KV cache also depends on other tokens
    this.context = model.config.max_position_embeddings;
  }

  rewind(length = 0) {
    const isWhole = this.cache?.ids.length === this.ids.length; // otherwise it holds more than the context
    this.ids.length = Math.min(length, this.ids.length);
    this.isShifted = false;
    this.model.rewind(length);
    if (isWhole) this.cache.rewind(length);
    else if (this.cache) this.cache = this.newCache(this.ids);
  }

  // Keeps the tokens with which `ids` begins, but not all of `ids`. Returns how many.
  reuse(ids) {
    let same = 0;
    if (this.isShifted) this.rewind();
    while (same < ids.length - 1 && same < this.ids.length && ids[same] === this.ids[same]) same++;
    this.rewind(same);
    return same;
  }

  // As `reuse`, at the beginning of a prompt, the last `written` tokens of which the model wrote: the cache does not count them.
  begin(ids, written = 0) {
    const same = this.reuse(ids);
    this.cache?.countFirst(written ? Math.max(0, ids.length - written) : Infinity);
    return same;
  }

  // Processes tokens; returns the logits after the last one, or all of them. Tokens that the model writes do not count.
  read(ids, { counts = true, every = false } = {}) {
    const rows = ids.map((token, i) => {
      const logits = this.model.step(token, every || i === ids.length - 1);
      this.ids.push(token);
      this.cache?.append(token, counts);
      return logits && this.cache ? this.cache.mix(logits) : logits;
    });
    return every ? rows : rows.at(-1);
  }

  // Makes space in a full context; the n-gram cache keeps the whole text. Learned positions cannot change: the newer half of
  // the context is processed again.
  shift() {
    if (this.model.positions) {
      this.ids = this.ids.slice(Math.ceil(this.ids.length / 2));
      this.model.rewind();
      for (const token of this.ids) this.model.step(token, false);
    } else this.ids.splice(...this.model.shift());
    this.isShifted = true;
  }
}
