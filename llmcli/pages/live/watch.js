// The page of a run in progress: it asks for the state of the run every second. Closing or reloading it changes nothing.
const INTERVAL = 1000; // milliseconds between two requests
let state = null, shown = "";

function showState() {
  if (!state) return;
  const { phase, file, step } = state, curve = state.curve && { ...state.curve };
  byId("phase").textContent = say(phase, { file });
  byId("progress").value = step?.progress ?? 0;
  byId("figures").textContent = step && phase === "running" ? say("figures", step) : "";
  byId("model").hidden = !state.model;
  showInvitation(state.class);
  const key = remembered("llm.api_key"), code = key ? `code=${encodeURIComponent(key)}` : "";
  [...byId("model").querySelectorAll("a")].forEach((link, i) => { link.href = ["/model?", "/model?download&"][i] + code; });
  if (curve) {
    const training = say("lossNow", { training: curve.training.at(-1).toFixed(3) });
    curve.summary = curve.validation.length ? say("validationNow", { training, validation: curve.validation.at(-1).toFixed(3) }) : training;
  }
  showRun({ ...state, curve, samples: [...state.samples].reverse() });
}

async function poll() {
  const isAsking = !byId("key").hidden;
  try {
    const answer = await fetch("/state", { cache: "no-store", headers: authorization() });
    const error = await refusalOf(answer), code = error?.code, text = error ? shown : await answer.text();
    if (!error) showProblem("");
    else if (!isAsking || code !== "class_code_missing") { // what was wrong with the code that was sent stays
      showProblem(say(isRefusal(code) ? code : "serverSays", { error: code }));
    }
    if (text !== shown) {
      [shown, state] = [text, JSON.parse(text)];
      showState();
    }
  } catch {
    if (shown) {
      [shown, state] = ["", { ...state, phase: state.phase === "saved" ? "saved" : "lost", model: false }];
      showState();
    }
  }
  setTimeout(poll, INTERVAL);
}

onLanguage(showState);
window.addEventListener("resize", showState);
onKey(() => { byId("key").hidden = true; });
poll();
