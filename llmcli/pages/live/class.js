// A class: the code that its browsers send as their key, what the server says when it refuses them, and the invitation for the projector.
const isRefusal = (code) => code in TEXTS[language]; // the code of an error is then the name of a text
if (location.hash.length > 1) { // the address of the QR code ends with the class code
  store("llm.api_key", location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
}
function authorization() {
  const key = remembered("llm.api_key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}
// Returns the error in an answer, or null. Shows the field for the key if the answer asks for it: the class code, or an
// API key. A wrong code is not sent again.
async function refusalOf(answer) {
  const error = answer.ok ? null : (await answer.json().catch(() => null))?.error ?? {}, code = error?.code;
  byId("key").hidden = answer.status !== 401 && code !== "address_locked";
  if (!/^(class|address)_/.test(code)) return error;
  byId("api-key").type = "text";
  const name = byId("key").querySelector("span");
  name.dataset.text = "classCode";
  name.textContent = say("classCode");
  if (code === "class_code_wrong") store("llm.api_key", "");
  return error;
}
// Calls `open` with each key that is typed. Class codes are typed in any case and width.
function onKey(open) {
  byId("key").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = byId("api-key").value, isCode = byId("api-key").type === "text";
    store("llm.api_key", isCode ? typed.normalize("NFKC").replace(/[^\x21-\x7e]/g, "") : typed);
    open();
  });
}
// Shows how others join, closed at first: the address, the class code, and a QR code of both.
function showInvitation(invitation) {
  if (!invitation || byId("class")) return;
  const { url, code, qr } = invitation, text = (tag, name) => element(tag, { "data-text": name }, say(name));
  const modules = qr.flatMap((row, y) => [...row].map((dark, x) => (dark === "1" ? `M${x} ${y}h1v1h-1z` : ""))).join("");
  const drawn = element("svg", { viewBox: `0 0 ${qr.length} ${qr.length}`, "aria-hidden": true }, element("path", { d: modules }));
  const words = [element("p", { class: "big" }, url.replace("http://", "")), element("p", {}, text("span", "classCode"), " ", element("b", { class: "big" }, code)), text("p", "invitationHint")];
  const columns = element("div", { class: "columns" }, element("div", {}, ...words), ...(qr.length ? [drawn] : []));
  document.querySelector(".top").after(element("details", { id: "class" }, text("summary", "invitation"), columns));
}
