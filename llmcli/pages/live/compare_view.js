// Two prompts side by side: their next words, and the predictions after each layer.
byId("other").addEventListener("input", () => refresh());

function refreshCompare() {
  const other = { text: byId("other").value, ids: null, prefix: 0, written: 0 }, texts = [state, other];
  const names = texts.map(({ text }) => (text ? (text.length > 40 ? "…" : "") + readable(text.slice(-40)) : say("noText")));
  const key = (i) => element("span", {}, element("i", { class: ["first", "second"][i] }), ` ${names[i]}`);
  const parts = namesOf([...off]);
  byId("compared-legend").replaceChildren(key(0), key(1), parts && element("span", {}, say("without", { parts })));
  return request("compare", { texts, without: [...off] }, ({ pairs, lenses }) => {
    if (pairs) showBothBars(byId("compared"), pairs, true);
    lenses?.forEach(({ lens, token }, i) => showLens(byId(`lens-${i}`), lens, readable(token), names[i]));
  });
}
