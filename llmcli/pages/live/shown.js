// What both run programs, in the page and on a server, have in common: how they answer requests, and how much of a
// prediction they show.

// An error that the page shows in its language: the name of one of its texts, and the values in it.
class Problem extends Error {
  constructor(name, values = {}) {
    super(name);
    this.values = values;
  }
}
// A text without the space that SentencePiece puts before it.
const withoutSpace = (text, { prefix_space: space }) => (space ? text.replace(/^ /, "") : text);
const textOf = ({ message, values }) => (values ? [message, values] : ["failed", { error: message }]);

// Answers requests {id, type, ...} with messages {id, ...} to `send`, the last of which is `done`. A new request for one
// of `jobs`, or "stop", aborts the one before, which got a signal, or what `contextOf` makes of it; requests for `atOnce`
// are answered in between.
function answering(jobs, atOnce, send, contextOf = (signal) => signal) {
  let controller = new AbortController(), queue = Promise.resolve();
  async function answer({ id, type, ...request }, signal) {
    try {
      if (atOnce[type]) return send({ id, done: true, ...await atOnce[type](request) });
      signal.throwIfAborted();
      for await (const found of jobs[type](request, contextOf(signal))) {
        if (!signal.aborted) send({ id, ...found });
      }
      send({ id, done: true });
    } catch (error) {
      send({ id, done: true, ...(error.name === "AbortError" ? {} : { error: textOf(error) }) });
    }
  }
  return (request) => {
    if (atOnce[request.type]) return void answer(request);
    controller.abort();
    controller = new AbortController();
    const { signal } = controller;
    if (request.type !== "stop") queue = queue.then(() => answer(request, signal));
  };
}

const QUICK_EVALUATIONS = 20; // of the model, for a first look at the next words
const SHOWN = 10, ALWAYS_SHOWN = 3; // bars
const VISIBLE = 0.0005; // probability that is not shown as 0.0%
const LENS_TOKENS = 4, PAIRS = 5; // the most likely ones, of each layer and of each of two predictions
const MAX_COLOR_WORK = 5e8; // parameters x tokens of a text that are colored: about a second
const MIN_COMPARED = 1e-9; // probability of a text that only one of two predictions has: the other search did not follow it

// The most likely choices, and the probability of all others.
function answerOf(choices) {
  const listed = choices.slice(0, SHOWN).filter(({ probability }, i) => i < ALWAYS_SHOWN || probability >= VISIBLE);
  return { choices: listed, rest: Math.max(0, 1 - listed.reduce((sum, { probability }) => sum + probability, 0)) };
}

// The last `count` tokens of a text, the first of them replaced by its beginning-of-text token if it has one: a model that saw
// this token before every text in training predicts badly without it (attention sink).
function lastTokens(ids, count, bosIds) {
  const last = ids.slice(Math.max(0, ids.length - count));
  if (1 < count && count < ids.length && bosIds.includes(ids[0])) last[0] = ids[0];
  return last;
}

// How many of the first `length` tokens of a text the model wrote, which wrote the last `written` of all.
const writtenBefore = (length, { ids, written }) => Math.max(0, length - (ids.length - written));

// The windows in which the tokens of a text are colored: of those from `start` to `end`, the ones from `from` on. Each has at
// least half a context before it, or the beginning of the text. Of a long text, only the end is colored.
function colorWindows(length, context, parameters) {
  const half = Math.floor(context / 2), most = Math.max(context, Math.floor(MAX_COLOR_WORK / parameters)), windows = [];
  for (let from = Math.max(1, length - most); from < length; from = windows.at(-1).end) {
    const start = Math.max(0, from - half);
    windows.push({ start, from, end: Math.min(length, start + context) });
  }
  return windows;
}
const colorLegend = (length, [first]) => (first?.from > 1 ? ["longProbabilityLegend", { count: length - first.from }] : ["probabilityLegend"]);

// A text with its probabilities in two predictions, and the bits between them.
const pairOf = (text, p, q) => ({ text, p, q, bits: Math.log2(Math.max(q, MIN_COMPARED) / Math.max(p, MIN_COMPARED)) });

// The pairs that are shown: what either prediction finds likely. Before the end of their searches, only those that both have
// found, if there are any: a search may not have reached the others yet.
function rankPairs(pairs, isEnd) {
  const likelihood = ({ p, q }) => Math.max(p, q), inBoth = pairs.filter(({ p, q }) => p > 0 && q > 0);
  return (isEnd || !inBoth.length ? pairs : inBoth).sort((a, b) => likelihood(b) - likelihood(a)).filter((one, i) => !i || likelihood(one) >= VISIBLE);
}
// The one that is explained: the target, or what is likeliest before parts are switched off.
const chosenPair = (pairs, target) => pairs.find(({ text }) => text === target) ?? pairs.reduce((a, b) => (b.p > a.p ? b : a));
