// How much of a prediction the page shows: the rules of both run programs, in the page and on a server.
const QUICK_EVALUATIONS = 20; // of the model, for a first look at the next words
const SHOWN = 10, ALWAYS_SHOWN = 3; // bars
const VISIBLE = 0.0005; // probability that is not shown as 0.0%
const LENS_TOKENS = 4, PAIRS = 5; // the most likely ones, of each layer and of each of two predictions
const MIN_COMPARED = 1e-9; // probability of a text that only one of two predictions has: the other search did not follow it

// The most likely choices, and the probability of all others.
function answerOf(choices) {
  const listed = choices.slice(0, SHOWN).filter(({ probability }, i) => i < ALWAYS_SHOWN || probability >= VISIBLE);
  return { choices: listed, rest: Math.max(0, 1 - listed.reduce((sum, { probability }) => sum + probability, 0)) };
}

// A text with its probabilities in two predictions, and the bits between them.
const pairOf = (text, p, q) => ({ text, p, q, bits: Math.log2(Math.max(q, MIN_COMPARED) / Math.max(p, MIN_COMPARED)) });
