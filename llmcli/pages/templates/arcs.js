// Arcs over tokens, from one to those it attends to; tokens may wrap into several rows.
const MAX_ARC_HEIGHT = 84; // pixels

// `targets` are the indices of the nodes that get an arc, `weights` those of all nodes: the higher, the thicker the arc.
function drawArcs(nodes, source, weights, targets) {
  const area = byId("token-area");
  area.classList.toggle("wrapped", nodes.at(-1).offsetTop > nodes[0].offsetTop);
  const areaBox = area.getBoundingClientRect();
  const position = (node) => {
    const box = node.getBoundingClientRect();
    return { x: box.left + box.width / 2 - areaBox.left, top: box.top - areaBox.top, bottom: box.bottom - areaBox.top };
  };
  const from = position(nodes[source]);
  const maxHeight = area.classList.contains("wrapped") ? parseFloat(getComputedStyle(byId("tokens")).rowGap) - 8 : MAX_ARC_HEIGHT;
  byId("arc-lines").replaceChildren(...targets.map((i) => {
    const to = position(nodes[i]);
    const isSameRow = Math.abs(to.top - from.top) < 4; // an arc over the row; otherwise a line up to the other row
    const height = isSameRow ? Math.min(maxHeight, 18 + Math.abs(to.x - from.x) / 5) : Math.max(26, (from.top - to.bottom) / 2);
    const end = isSameRow ? to.top : to.bottom;
    const d = `M${from.x} ${from.top} C${from.x} ${from.top - height} ${to.x} ${isSameRow ? end - height : end + height} ${to.x} ${end}`;
    return element("path", { d, "stroke-width": (1.25 + 6 * weights[i]).toFixed(2), "stroke-opacity": (0.3 + 0.7 * weights[i]).toFixed(2) });
  }));
}
