// Chat: messages, and the answers of a model that was trained on conversations.
// [{content, ids, prefix, dropped, end}]: the user wrote the first, and each second one; an answer has the tokens of the conversation
// that the model read, from which so many turns were dropped, and why it ended: "stop", or "length" if it was cut off
let messages = [];
let earlier = []; // what was shown before each change: {messages, draft}
let lastAnswer = 0; // number of the request for the one that is being written

function showMessages() {
  const unread = 2 * (messages.at(-1)?.dropped ?? 0), controls = byId("send").parentElement;
  const isInView = byId("message").getBoundingClientRect().top < innerHeight;
  const hint = (text) => element("p", { class: "hint" }, say(text));
  byId("messages").replaceChildren(...messages.flatMap(({ content, end }, i) => {
    const speaker = element("b", {}, say(i % 2 ? "model" : "you")), text = content || say(end ? "noText" : "waiting");
    const message = element("p", { class: i % 2 ? "from-model" : "from-user", dir: "auto" }, speaker, element("span", {}, text));
    message.classList.toggle("unread", i < unread);
    return [...(i && i === unread ? [hint("contextFull")] : []), message, ...(end === "length" ? [hint("cutOff")] : [])];
  }));
  for (const id of ["chat-undo", "new-chat"]) setDisabled(id, !messages.length && !(id === "chat-undo" && earlier.length), "message");
  for (const id of ["again", "copy", "look-inside", "answer-tokens"]) setDisabled(id, !messages.at(-1)?.ids);
  showExamples("questions", messages.length ? [] : data.examples?.questions, "message", (text) => {
    keep();
    ask(text);
  });
  if (isInView && messages.length) controls.scrollIntoView({ block: "nearest" });
}
function setAnswering(answering) {
  setDisabled("send", answering);
  byId("chat-stop").disabled = !answering;
  byId("messages").setAttribute("aria-busy", String(answering)); // a screen reader reads the answer when it is complete
}
function endAnswer() {
  stop();
  lastAnswer = 0;
  setAnswering(false);
}
function resetChat(before = []) {
  endAnswer();
  earlier = [];
  messages = before.length && !before.at(-1).content ? before.slice(0, -2) : before;
}

// Shows the conversation as it was before the last change.
function takeBack() {
  const before = earlier.pop() ?? { messages: messages.slice(0, -2), draft: messages.at(-2)?.content ?? "" };
  endAnswer();
  messages = before.messages;
  byId("message").value = before.draft;
  showMessages();
}
function keep() {
  endAnswer();
  earlier.push({ messages, draft: byId("message").value });
}

// Answers a message after those that are shown, or after `before`.
function ask(content, before = messages) {
  const answer = { content: "", dropped: before.at(-1)?.dropped };
  messages = [...before, { content }, answer];
  showProblem("");
  setAnswering(true);
  showMessages();
  const sent = { messages: messages.slice(0, -1).map((one) => one.content), settings: settings() };
  lastAnswer = request("chat", sent, ({ id, done, error, ...news }) => {
    if (id !== lastAnswer) return; // it was taken back
    Object.assign(answer, news);
    if (error || (done && !answer.content && !answer.end)) return takeBack(); // stopped before its first token
    if (done) setAnswering(false);
    showMessages();
  });
}
function send() {
  const content = byId("message").value.trim();
  if (!content || byId("send").disabled) return;
  keep();
  byId("message").value = "";
  ask(content);
}
byId("send").addEventListener("click", send);
byId("chat-stop").addEventListener("click", () => stop());
byId("chat-undo").addEventListener("click", takeBack);
byId("again").addEventListener("click", () => {
  const question = messages.at(-2).content;
  keep();
  ask(question, messages.slice(0, -2));
});
byId("new-chat").addEventListener("click", () => {
  keep();
  messages = [];
  showMessages();
  byId("message").focus();
});
byId("copy").hidden = !navigator.clipboard; // browsers offer it to pages of this computer, and over HTTPS
byId("copy").addEventListener("click", () => navigator.clipboard.writeText(messages.at(-1).content).then(() => {
  announce(say("copied"));
  byId("copy").textContent = say("copied");
  setTimeout(() => { byId("copy").textContent = say("copy"); }, 2000);
}));

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
  openAnswer("inside", { text: "", ids: ids.slice(0, prefix), prefix, written: 0 });
});
byId("answer-tokens").addEventListener("click", () => {
  const { content: text, ids, prefix } = messages.at(-1);
  openAnswer("write", { text, ids, prefix, written: ids.length - prefix });
});
byId("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return; // 229: Safari's end of a composition
  event.preventDefault();
  send();
});
