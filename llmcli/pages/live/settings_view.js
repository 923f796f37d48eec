// How the next token is chosen: sliders, and further settings that only a server has.
const SLIDERS = ["temperature", "topP", "minP"];
const WRITE_SLIDERS = { temperature: 1, topP: 1, minP: 0 }; // CHAT_SLIDERS come from the defaults of llm chat

const sliders = () => Object.fromEntries(SLIDERS.map((name) => [name, Number(byId(name).value)]));

// All settings; of the further ones, those that are given. They have the names of the server's fields.
function settings() {
  const given = [...byId("more").querySelectorAll(":valid")].filter((node) => node.value !== "");
  return { ...sliders(), ...Object.fromEntries(given.map((node) => [node.name, node.type === "number" ? Number(node.value) : node.value])) };
}

function showSettings(values = sliders()) {
  for (const name of SLIDERS) {
    byId(name).value = values[name];
    byId(`${name}-value`).textContent = Number(byId(name).value).toFixed(2);
  }
}
byId("settings").addEventListener("input", ({ target }) => {
  if (!SLIDERS.includes(target.id)) return target.setAttribute("aria-invalid", String(!target.checkValidity()));
  showSettings();
  refresh();
});
