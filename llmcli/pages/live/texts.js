// The texts of the page are in texts/, a file for each language; {name} is replaced by a value.
let language = remembered("llm.language") ?? (navigator.language?.startsWith("ja") ? "ja" : "en");
function say(name, values = {}) {
  const shownValue = (value) => (typeof value === "number" ? value.toLocaleString("en") : value);
  return TEXTS[language][name].replace(/\{(\w+)\}/g, (_, key) => shownValue(values[key]));
}

// Shows what the markup of the page says, and what `show` does, now and when the language is changed.
function onLanguage(show) {
  function translate() {
    document.documentElement.lang = language;
    for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text);
    byId("language").textContent = say("switchTo");
    byId("language").lang = language === "ja" ? "en" : "ja";
    show();
  }
  byId("language").addEventListener("click", () => {
    language = byId("language").lang;
    store("llm.language", language);
    translate();
  });
  translate();
}

// ---- the record of a model file, which is English: rules translate its names and units; what a group matches stays

const AS_IT_IS = ["types", "settings", "versions", "optimizer"]; // names of settings, data types and programs
const MAX_TRANSLATED = 2000; // characters: the expressions take quadratic time, and longer values are names

function translated(text, rules) {
  return rules.reduce((all, [english, own]) => all.replace(new RegExp(english, "g"), own), text);
}
function recordName(name) {
  const { recordNames, recordNameRules } = TEXTS[language];
  return recordNames[name] ?? translated(name, Object.entries(recordNameRules));
}
function recordValue(name, value) {
  if (AS_IT_IS.includes(name) || value.length > MAX_TRANSLATED) return value;
  const { recordValues, recordWords } = TEXTS[language];
  const whole = Object.entries(recordValues).find(([english]) => new RegExp(english).test(value));
  return translated(value, whole ? [whole] : Object.entries(recordWords));
}
