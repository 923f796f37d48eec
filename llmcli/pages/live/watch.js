// The page of a run in progress: it asks for the state of the run every second. Closing or reloading it changes nothing.
Object.assign(TEXTS.en, {
  preparing: "Preparing the first step.", running: "Training.", finishing: "Training is finished; the model is measured on the held-out text and saved.",
  saved: "The model is saved in {file}.", figures: "{percent} · step {step} · epoch {epoch} · {speed} tokens per second · {left} left",
  lossNow: "Training loss {training} bits per byte", validationNow: "{training}, validation loss {validation}",
  lost: "There is no connection to the run: it has ended, or was stopped. The page shows its last state.",
  newestFirst: "After an evaluation, the model continues the same prompt. The newest text comes first.",
  modelHint: "The model as one HTML file, which runs in any browser, offline:", openModel: "Open the page of the model", saveModel: "Save the page of the model",
});
Object.assign(TEXTS.ja, {
  preparing: "最初のステップを準備しています。", running: "学習しています。", finishing: "学習が終わりました。学習に使っていない文章で測ってから、モデルを保存します。",
  saved: "モデルを {file} に保存しました。", figures: "{percent} · ステップ{step} · エポック {epoch} · 毎秒{speed}トークン · 残り {left}",
  lossNow: "学習損失 {training}ビット/バイト", validationNow: "{training}、検証損失 {validation}",
  lost: "学習との接続がありません。学習は終わったか、停止されました。最後の状態を表示しています。",
  newestFirst: "評価のあとで、モデルは同じプロンプトの続きを書きます。新しいものが先です。",
  modelHint: "モデルを1つの HTML ファイルにしたものです。どのブラウザでもオフラインで動きます。", openModel: "モデルのページを開く", saveModel: "モデルのページを保存",
});
const INTERVAL = 1000; // milliseconds between two requests
let state = null, shown = "";

function showState() {
  if (!state) return;
  const { phase, file, step, plan, verdict, samples, prompt } = state, curve = state.curve && { ...state.curve };
  byId("phase").textContent = say(phase, { file });
  byId("progress").value = step?.progress ?? 0;
  byId("figures").textContent = step && phase === "running" ? say("figures", step) : "";
  showVerdict(verdict);
  byId("model").hidden = !state.model;
  showInvitation(state.class);
  const key = stored.get("llm.api_key"), code = key ? `code=${encodeURIComponent(key)}` : "";
  [...byId("model").querySelectorAll("a")].forEach((link, i) => { link.href = ["/model?", "/model?download&"][i] + code; });
  showPairs("plan", plan);
  if (curve) {
    const training = say("lossNow", { training: curve.training.at(-1).toFixed(3) });
    curve.summary = curve.validation.length ? say("validationNow", { training, validation: curve.validation.at(-1).toFixed(3) }) : training;
  }
  showLosses(curve);
  showProbe(state.probe, curve);
  showSamples(samples.slice().reverse(), prompt);
}

function showRefusal({ ok, status }, text) {
  const code = ok ? null : JSON.parse(text).error.code, isStill = status === 401 && !byId("key").hidden && code === "class_code_missing";
  askForKey(status, code);
  if (isStill) return; // what was wrong with the code that was sent stays
  byId("problem").hidden = ok;
  byId("problem").textContent = ok ? "" : say(REFUSALS[code] ?? "serverSays", { error: code });
}

async function poll() {
  try {
    const answer = await fetch("/state", { cache: "no-store", headers: authorization() }), text = await answer.text();
    byId("lost").hidden = true;
    showRefusal(answer, text);
    if (answer.ok && text !== shown) {
      [shown, state] = [text, JSON.parse(text)];
      showState();
    }
  } catch {
    byId("lost").hidden = false;
  }
  setTimeout(poll, INTERVAL);
}

function showTexts() {
  translatePage();
  showState();
}
byId("language").addEventListener("click", () => {
  language = language === "ja" ? "en" : "ja";
  showTexts();
});
window.addEventListener("resize", showState);
onKey(() => { byId("key").hidden = true; });
showTexts();
poll();
