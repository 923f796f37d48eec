// Logits -> a token. The filters are those of llmcli, in its order: temperature, top-p, min-p. A token that a filter
// removes has a logit of -Infinity.

// The probability with which each token is chosen, under settings {temperature, topP, minP}.
function samplingProbabilities(logits, { temperature, topP, minP }) {
  const highest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!Number.isFinite(highest)) throw new Problem("damagedWeights");
  if (temperature === 0) { // greedy: always the most likely token
    const best = logits.indexOf(highest);
    return Float64Array.from(logits, (_, i) => (i === best ? 1 : 0));
  }
  let scaled = Float64Array.from(logits, (logit) => (logit - highest) / temperature);
  if (topP < 1) { // only the most likely tokens that together reach topP
    const probabilities = softmax(scaled), ranked = probabilities.slice().sort().reverse();
    let total = 0;
    const last = ranked.findIndex((probability) => (total += probability) >= topP);
    const least = ranked.at(last);
    scaled = scaled.map((logit, i) => (probabilities[i] >= least ? logit : -Infinity));
  }
  if (minP > 0) { // only tokens at least minP times as likely as the most likely one
    scaled = scaled.map((logit) => (logit >= Math.log(minP) ? logit : -Infinity));
  }
  return softmax(scaled);
}

// An index, drawn with these probabilities.
function draw(probabilities, random = Math.random) {
  let left = random() * probabilities.reduce((a, b) => a + b, 0);
  const drawn = probabilities.findIndex((probability) => probability && (left -= probability) < 0);
  return drawn < 0 ? probabilities.findLastIndex(Boolean) : drawn; // sums are rounded
}
