"use strict";
// What both pages share. All text goes in as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...inside) {
  const drawn = ["svg", "path", "line", "polyline", "circle", "text", "title", "clipPath", "rect"].includes(tag);
  const node = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...inside.map((one) => (one instanceof Node ? one : String(one))));
  return node;
}

// A token on one line: white space as marks, what could command or turn round the text by its number.
function shown(text) {
  return text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍")
    .replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g,
      (c) => "⟨U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟩");
}
const spoken = (text) => shown(text).replace(/·/g, " ").trim() || { " ": "space", "\n": "line end" }[text] || shown(text);
const percent = (share) => (100 * share).toFixed(1) + "%";
const token = (text) => make("span", { class: "token" }, marked(text));

// A token whose marks for white space are fainter than its letters.
function marked(text) {
  const parts = document.createDocumentFragment();
  parts.append(...shown(text).split(/([·⏎⇥␍]+)/).filter(Boolean).map((part) =>
    /^[·⏎⇥␍]/.test(part) ? make("span", { class: "mark" }, part) : part));
  return parts;
}

function table(caption, names, rows, numbers = []) {
  const kind = (i) => (numbers.includes(i) ? { class: "number" } : {});
  return make("table", {}, make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...names.map((name, i) => make("th", { scope: "col", ...kind(i) }, name)))),
    make("tbody", {}, ...rows.map((row) => row instanceof Node ? row : make("tr", {}, ...row.map((cell, i) =>
      make(i ? "td" : "th", { ...(i ? {} : { scope: "row" }), ...kind(i) }, cell))))));
}

// Rows of [name, figure, share of the whole width, class of the bar].
function bars(list, rows) {
  list.replaceChildren(...rows.map(([name, figure, share, kind]) => {
    const bar = make("div", { class: kind ? "bar " + kind : "bar" });
    bar.style.width = 100 * share + "%";
    return make("li", {}, name, make("span", { class: "figure" }, figure), make("div", { class: "track" }, bar));
  }));
}
