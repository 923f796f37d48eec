"use strict";
// The scripts of a trainable page are compressed: they run when they are unpacked. Before that, the page is copied: saved pages are
// made of the copy.
const pristine = document.documentElement.cloneNode(true);
async function unpack(id) {
  const node = document.getElementById(id), bytes = Uint8Array.from(atob(node.textContent), (character) => character.charCodeAt(0));
  node.textContent = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  return node.textContent;
}
Promise.all(["page", "worker"].map(unpack)).then(([page]) => {
  const script = document.createElement("script");
  script.textContent = page;
  document.body.append(script);
}, () => {
  const problem = "This page needs a newer browser. このページには、新しいブラウザが必要です。";
  document.getElementById("problem").textContent = problem;
});
