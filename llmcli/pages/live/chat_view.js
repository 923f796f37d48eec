// Chat: messages, and the answers of a model that was trained on conversations.
let messages = []; // [{content, ids, prefix}]: the user wrote the first, and each second one; an answer has the tokens of the whole conversation
let earlier = []; // what was shown before each change: {messages, draft}
let turn = 0; // the answer that is being written

function showMessages() {
  byId("messages").replaceChildren(...messages.map(({ content }, i) => {
    const speaker = element("b", {}, say(i % 2 ? "model" : "you"));
    return element("p", { class: i % 2 ? "from-model" : "from-user", dir: "auto" }, speaker, element("span", {}, content || say("waiting")));
  }));
  for (const id of ["chat-undo", "new-chat"]) byId(id).disabled = !messages.length && !(id === "chat-undo" && earlier.length);
  for (const id of ["again", "copy", "look-inside", "answer-tokens"]) setDisabled(id, !messages.at(-1)?.ids);
  showExamples(byId("questions"), messages.length ? [] : data.examples?.questions, (text) => {
    keep(byId("message").value);
    ask(text);
  });
}
function setAnswering(answering) {
  setDisabled("send", answering);
  byId("chat-stop").disabled = !answering;
  byId("messages").setAttribute("aria-busy", String(answering)); // a screen reader reads the answer when it is complete
}
function resetChat({ messages: before = [], message = "" }) {
  turn++;
  earlier = [];
  messages = before.length && !before.at(-1).content ? before.slice(0, -2) : before;
  byId("message").value = message;
  setAnswering(false);
}

// Shows the conversation as it was before the last change.
function takeBack() {
  const before = earlier.pop() ?? { messages: messages.slice(0, -2), draft: messages.at(-2)?.content ?? "" };
  turn++;
  setAnswering(false);
  messages = before.messages;
  byId("message").value = before.draft;
  showMessages();
}
function keep(draft) {
  stop();
  earlier.push({ messages, draft });
}

// Answers a message after those that are shown, or after `before`.
function ask(content, before = messages) {
  if (byId("send").disabled) return;
  const own = ++turn, answer = { content: "" };
  messages = [...before, { content }, answer];
  showProblem("");
  setAnswering(true);
  showMessages();
  request("chat", { messages: messages.slice(0, -1).map((one) => one.content), settings: settings() }, ({ answer: text, ids, prefix, done, error }) => {
    if (own !== turn) return; // it was taken back
    if (error) return takeBack();
    if (text !== undefined) Object.assign(answer, { content: text, ids, prefix });
    if (done) setAnswering(false);
    showMessages();
  });
}
function send() {
  const content = byId("message").value.trim();
  if (!content || byId("send").disabled) return;
  keep(content);
  byId("message").value = "";
  ask(content);
}
byId("send").addEventListener("click", send);
byId("chat-stop").addEventListener("click", () => stop());
byId("chat-undo").addEventListener("click", () => {
  stop();
  takeBack();
});
byId("again").addEventListener("click", () => {
  const question = messages.at(-2).content;
  keep(byId("message").value);
  setAnswering(false);
  ask(question, messages.slice(0, -2));
});
byId("new-chat").addEventListener("click", () => {
  keep(byId("message").value);
  turn++;
  setAnswering(false);
  messages = [];
  showMessages();
  byId("message").focus();
});
byId("copy").hidden = !navigator.clipboard; // browsers offer it to pages of this computer, and over HTTPS
byId("copy").addEventListener("click", () => navigator.clipboard.writeText(messages.at(-1).content).then(() => announce(say("copied"))));

// Opens the prediction of the first token of the last answer, or all tokens of the answer.
function openAnswer(view, next) {
  stop();
  keepForUndo();
  setState(next);
  openTab(byId(`tab-${view}`));
  byId(`tab-${view}`).focus();
}
byId("look-inside").addEventListener("click", () => {
  const { ids, prefix } = messages.at(-1);
  openAnswer("inside", { text: "", ids: ids.slice(0, prefix), prefix });
});
byId("answer-tokens").addEventListener("click", () => {
  const { content: text, ids, prefix } = messages.at(-1);
  openAnswer("write", { text, ids, prefix });
});
byId("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
