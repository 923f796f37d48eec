// Two prompts side by side: their next words, and the predictions after each layer.
byId("other").addEventListener("input", () => refresh());

function refreshCompare() {
  const other = { text: byId("other").value, ids: null, prefix: 0, written: 0 }, texts = [state, other];
  // a shortened text begins with a letter or digit, not with the end of a sentence or of a surrogate pair
  const shortened = (text) => "…" + readable(text.slice(-40).replace(/^[^\p{L}\p{N}]+(?=[\p{L}\p{N}])/u, ""));
  const names = texts.map(({ text }) => (text.length > 40 ? shortened(text) : text ? readable(text) : say("noText")));
  const key = (i) => element("span", {}, element("i", { class: ["first", "second"][i] }), ` ${names[i]}`);
  const parts = namesOfOff();
  byId("compared-legend").replaceChildren(key(0), key(1), parts && element("span", {}, say("without", { parts })));
  return request("compare", { texts, without: [...off] }, ({ pairs, lenses }) => {
    if (pairs) showBothBars(byId("compared"), pairs, true);
    lenses?.forEach(({ lens, token }, i) => showLens(byId(`lens-${i}`), lens, readable(token), names[i]));
  });
}
