// The record of a model file is English. These rules say its names and units in Japanese; what a group matches is data, and stays.
const RECORD_NAMES = {
  "weights in this page": "このページの重み", form: "形式", types: "データ型", sha256: "SHA-256", "not run here": "実行できない理由",
  tokenizer: "トークナイザー", adapter: "アダプター", "n-gram cache": "n-gram キャッシュ", "base model": "元のモデル", "averaged model": "平均したモデル",
  "exported model": "エクスポートしたモデル", corpus: "コーパス", conversations: "会話", "greedy answers": "温度0での答え", "plain text": "会話以外の文章",
  steps: "ステップ数", distillation: "蒸留", "best weights": "最良の重み", validation: "検証", "held-out": "評価用データ", memorization: "丸暗記",
  time: "時間", settings: "設定", versions: "バージョン", vocabulary: "語彙", "learned tokens": "学習するトークン", budget: "時間の上限",
  "model size": "モデルの大きさ", architecture: "構造", experts: "エキスパート", "context length": "コンテキスト長", initialization: "初期化",
  "tied embeddings": "埋め込みの共有", "batch size": "バッチサイズ", "training tokens": "学習トークン数", "KL divergence": "KL ダイバージェンス",
  "conversation phase": "会話の段階", dropout: "ドロップアウト", "BPE-dropout": "BPE ドロップアウト", calibration: "較正", "weight decay": "重み減衰",
  "LoRA rank": "LoRA のランク", weights: "重み", optimizer: "最適化手法", "learning rate": "学習率", device: "デバイス",
};
const RECORD_NAME_RULES = [[/^tokens per expert, layer (\d+)$/, "第$1層の各エキスパートへのトークン"]];
const AS_IT_IS = ["types", "settings", "versions", "optimizer"]; // names of settings, data types and programs

// Whole values, some with names of files.
const RECORD_VALUES = [
  [/^int8, one scale per row: the bits per byte are about (\S+) higher than .*$/, "int8（行ごとに倍率を1つ持つ）。バイトあたりのビット数は、元の重みより約$1大きくなります"],
  [/^int8, one scale per row: the bits per byte are less than (\S+) higher than .*$/, "int8（行ごとに倍率を1つ持つ）。バイトあたりのビット数の増加は、元の重みの$1未満です"],
  [/^float16, as int8 weights would raise the bits per byte by (\S+)$/, "float16（int8 では、バイトあたりのビット数が$1大きくなるため）"],
  [/^a model of llmcli$/, "llmcli のモデル"], [/^(\S+) file$/, "$1 ファイル"], [/^not in the file$/, "ファイルにありません"],
  [/^(.*) and ([\d,]+) more, ([\d,]+) bytes$/, "$1 ほか$2個、$3バイト"], [/^(.*), ([\d,]+) bytes$/, "$1、$2バイト"],
  [/^([\d,]+) for training, ([\d,]+) held out$/, "学習用$1件、評価用$2件"],
  [/^to ([\d,]+) held-out questions?: ([\d,]+) exact, ([\d,]+) near \(at least (\S+) alike\), ([\d,]+) another training answer, ([\d,]+) garbled$/,
    "評価用の質問$1問のうち、正確$2問、ほぼ正確（$4以上一致）$3問、学習データの別の答え$5問、文の乱れ$6問"],
  [/^([\d,]+) tokens of the training text, not trained on$/, "学習用の文章のうち$1トークン（学習には使わない）"],
  [/^([\d,]+) of the training conversations, not trained on$/, "学習用の会話のうち$1件（学習には使わない）"],
  [/^(\S+) of generated 30-character strings occur verbatim in the training text(?: \(held-out text itself: (\S+)\))?$/,
    (_, share, heldOut) => `生成した30文字の並びの${share}が、学習用の文章にそのままあります${heldOut ? `（評価用の文章では${heldOut}）` : ""}`],
  [/^teacher until step (\S+) \(validation loss (\S+)\), then student; kept: the (teacher|student)$/,
    (_, step, bits, kept) => `ステップ${step}まで教師（検証損失${bits}）、その後は生徒。${kept === "teacher" ? "教師" : "生徒"}を残しました`],
  [/^contexts of up to (\d+) tokens$/, "$1トークンまでの文脈"], [/^not measured$/, "測定していません"],
  [/^The training loss went from (\S+) to (\S+) bits per byte by step ([\d,]+)(?:; the lowest .+ loss was (\S+))?\.$/,
    (_, first, last, step, lowest) => `ステップ${step}までに、学習損失は${first}から${last}ビット/バイトになりました。${lowest ? `検証損失は最小で${lowest}でした。` : ""}`],
  [/^yes$/, "する"], [/^no$/, "しない"], [/^on$/, "あり"], [/^off$|^none$/, "なし"], [/^step ([\d,]+)$/, "ステップ$1"],
  [/^from (\S+) of the run$/, "学習の$1から"], [/^last (\S+) of the run$/, "学習の最後の$1"], [/^induction heads$/, "誘導ヘッド"],
  [/^(\d+) of (\d+) active per token$/, "トークンごとに$2個のうち$1個を使う"], [/^([\d,]+) of ([\d,]+)$/, "$2のうち$1"],
  [/^sharded over the processes$/, "プロセスに分けて持つ"], [/^in each process$/, "各プロセスが持つ"],
];
// Parts of all other values.
const RECORD_WORDS = [
  [/ of answers at the end, on ([\d,]+) bytes, in float32/, "（学習の終わりに、答えの$1バイトで、float32 で測定）"],
  [/ at the end, on ([\d,]+) bytes, in float32/, "（学習の終わりに$1バイトで、float32 で測定）"], [/ of answers/, "（答え）"],
  [/; (\S+) of it also occurs in the training text/, "。その$1は、学習用の文章にもあります"],
  [/; (.*) before fine-tuning/, "。ファインチューニング前は$1"], [/([\d.]+) before, ([\d.]+) bits per byte after/, "前 $1、後 $2ビット/バイト"],
  [/([\d.]+) bits per byte after/, "後 $1ビット/バイト"], [/ bits per byte/g, "ビット/バイト"], [/\bnetwork /g, "ネットワーク "], [/\badapting /g, "適応込み "],
  [/ \(([\d.]+) epochs?\)/, "（$1エポック）"], [/interrupted/, "中断"], [/([\d,]+) tokens\/s/, "毎秒$1トークン"],
  [/(\d+)h\b/, "$1時間"], [/(\d+)m\b/, "$1分"], [/(\d+)s\b/, "$1秒"],
  [/hidden size (\d+)/, "隠れ次元$1"], [/ \((\d+) for keys and values\)/, "（キーとバリューは$1）"], [/(\d+) layers?\b/, "$1層"], [/(\d+) heads?\b/, "ヘッド$1個"],
  [/(\d+) processes, each/, "$1プロセス、それぞれ"], [/(\d+) threads?\b/, "$1スレッド"], [/\bcpu\b/, "CPU"], [/ \(embedding ([\d.e-]+)\)/, "（埋め込み$1）"],
  [/^at most ([\d,]+)/, "最大$1"], [/^about ([\d,]+)/, "約$1"], [/^weight /, "重み "], [/ x /g, " × "],
  [/([\d.,]+) epochs?\b/, "$1エポック"], [/([\d,]+) bytes\b/, "$1バイト"], [/([\d,]+) tokens?\b/g, "$1トークン"], [/([\d,]+) steps?\b/, "$1ステップ"],
  [/([\d,]+) parameters\b/, "パラメータ$1個"], [/([\d,]+) conversations?\b/, "$1件の会話"], [/, /g, "、"],
];

function recordName(name) {
  if (language === "en") return name;
  return RECORD_NAMES[name] ?? RECORD_NAME_RULES.reduce((text, [english, japanese]) => text.replace(english, japanese), name);
}

const MAX_TRANSLATED = 2000; // characters of a value: the expressions take quadratic time, and longer values are names

function recordValue(name, value) {
  if (language === "en" || AS_IT_IS.includes(name) || value.length > MAX_TRANSLATED) return value;
  const whole = RECORD_VALUES.find(([english]) => english.test(value));
  return (whole ? [whole] : RECORD_WORDS).reduce((text, [english, japanese]) => text.replace(english, japanese), value);
}
