// Shared by all pages. All text is inserted as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG_TAGS = ["svg", "path", "line", "polyline", "circle", "text", "title"];

// What a page keeps until its tab is closed, if the browser has storage, and it is not full.
function store(name, value) {
  try { sessionStorage.setItem(name, JSON.stringify(value)); } catch { /* nothing is kept */ }
}
function remembered(name) {
  try { return JSON.parse(sessionStorage.getItem(name)); } catch { return null; }
}

// `share`, from 0 to 1, is not an attribute: it colors a node, or is the length of a bar.
function element(tag, { share, ...attributes } = {}, ...children) {
  const node = SVG_TAGS.includes(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (share !== undefined) node.style.setProperty("--share", share);
  node.append(...children.flat().map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

const showProblem = (text) => { byId("problem").textContent = text; };

// Text on one line: marks for white space, code points for control characters and bidirectional overrides.
function visible(text) {
  return text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍")
    .replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g,
      (c) => "⟨U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟩");
}
const visibleWithSpaces = (text) => visible(text).replace(/·/g, " ");
// A token in a sentence and for screen readers.
const readable = (text) => (
  visibleWithSpaces(text).trim() || { " ": say("space"), "\n": say("lineEnd") }[text] || visible(text)
);
const percent = (share) => (100 * share).toFixed(1) + "%";
const tokenSpan = (text) => element("span", { class: "token" }, withFaintMarks(text));

// Visible text in which the marks for white space are fainter than the letters.
const withFaintMarks = (text) => visible(text).split(/([·⏎⇥␍]+)/).map((part, i) => (
  i % 2 ? element("span", { class: "faint" }, part) : part // each second part is of marks
));

function table(caption, headings, rows) {
  const cells = (row) => row.map((cell, i) => element(i ? "td" : "th", i ? {} : { scope: "row" }, cell));
  return element("table", {}, element("caption", {}, caption),
    element("thead", {}, element("tr", {}, headings.map((heading) => element("th", { scope: "col" }, heading)))),
    element("tbody", {}, rows.map((row) => element("tr", {}, cells(row)))));
}

// Replaces the children of a node. The focus stays on the button in the same place.
function replaceWithFocus(node, children) {
  const buttons = () => [...node.querySelectorAll("button")];
  const focused = buttons().indexOf(document.activeElement);
  node.replaceChildren(...children);
  if (focused >= 0) (buttons()[focused] ?? byId("text")).focus({ preventScroll: true });
}

// A list of bars, each `share` of the full width; `kind` is the class of a bar, `second` the share of a second bar, if
// there is one.
function showBars(list, rows) {
  const bar = (share, kind, figure = percent(share)) => [element("span", { class: "figure" }, figure),
    element("div", { class: "track" }, element("div", { class: `bar ${kind}`, share: Math.min(1, share) }))];
  replaceWithFocus(list, rows.map(({ name, share, kind = "", figure, second }) => {
    if (second === undefined) return element("li", {}, name, ...bar(share, kind, figure));
    return element("li", { class: "pair" }, name, ...bar(share, "first"), ...bar(second, "second"));
  }));
}
