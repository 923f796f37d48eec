// The record of a model file is English. These rules say its names and units in Japanese; what a group matches is data, and stays.
const RECORD_NAMES = {
  "weights in this page": "このページの重み", form: "形式", types: "データ型", sha256: "SHA-256", "not run here": "実行できない理由",
  tokenizer: "トークナイザー", adapter: "アダプター", "n-gram cache": "n-gram キャッシュ", "base model": "元のモデル", "averaged model": "平均したモデル",
  "exported model": "エクスポートしたモデル", corpus: "コーパス", conversations: "会話", "greedy answers": "確率最大の答え", "plain text": "会話以外の文章",
  steps: "ステップ数", distillation: "蒸留", "best weights": "最良の重み", validation: "検証", "held-out": "評価用データ", memorization: "丸暗記",
  time: "時間", settings: "設定", versions: "バージョン", vocabulary: "語彙", "learned tokens": "学習するトークン", budget: "予算",
  "model size": "モデルの大きさ", architecture: "構造", experts: "エキスパート", "context length": "文脈の長さ", initialization: "初期化",
  "tied embeddings": "埋め込みの共有", "batch size": "バッチサイズ", "training tokens": "学習トークン数", "KL divergence": "KL ダイバージェンス",
  "conversation phase": "会話の段階", dropout: "ドロップアウト", "BPE-dropout": "BPE ドロップアウト", calibration: "較正", "weight decay": "重み減衰",
  "LoRA rank": "LoRA のランク", weights: "重み", optimizer: "最適化手法", "learning rate": "学習率", device: "計算装置",
};
const RECORD_NAME_RULES = [[/^tokens per expert, layer (\d+)$/, "層 $1 の各エキスパートへのトークン"]];
const AS_IT_IS = ["types", "settings", "versions", "optimizer"]; // names of settings, data types and programs

// Whole values, some with names of files.
const RECORD_VALUES = [
  [/^int8, one scale per row: the bits per byte are about (\S+) higher than .*$/, "int8(行ごとに倍率を一つ持つ)。バイトあたりのビット数は、元の重みより約 $1 大きくなります"],
  [/^int8, one scale per row: the bits per byte are less than (\S+) higher than .*$/, "int8(行ごとに倍率を一つ持つ)。バイトあたりのビット数の増加は、元の重みの $1 未満です"],
  [/^float16, as int8 weights would raise the bits per byte by (\S+)$/, "float16(int8 では、バイトあたりのビット数が $1 大きくなるため)"],
  [/^a model of llmcli$/, "llmcli のモデル"], [/^(\S+) file$/, "$1 ファイル"], [/^not in the file$/, "ファイルにありません"],
  [/^(.*) and ([\d,]+) more, ([\d,]+) bytes$/, "$1 ほか $2 個、$3 バイト"], [/^(.*), ([\d,]+) bytes$/, "$1、$2 バイト"],
  [/^([\d,]+) for training, ([\d,]+) held out$/, "学習用 $1 件、評価用 $2 件"],
  [/^to ([\d,]+) held-out questions?: ([\d,]+) exact, ([\d,]+) near \(at least (\S+) alike\), ([\d,]+) another training answer, ([\d,]+) garbled$/,
    "評価用の質問 $1 問のうち、正確 $2、ほぼ正確($4 以上一致) $3、学習データの別の答え $5、文の乱れ $6"],
  [/^([\d,]+) tokens of the training text, not trained on$/, "学習用の文章のうち $1 トークン(学習には使わない)"],
  [/^([\d,]+) of the training conversations, not trained on$/, "学習用の会話のうち $1 件(学習には使わない)"],
  [/^(\S+) of generated 30-character strings occur verbatim in the training text(?: \(held-out text itself: (\S+)\))?$/,
    (_, share, heldOut) => `生成した 30 文字の並びの ${share} が、学習用の文章にそのままあります${heldOut ? `(評価用の文章では ${heldOut})` : ""}`],
  [/^teacher until step (\S+) \(validation loss (\S+)\), then student; kept: the (teacher|student)$/,
    (_, step, bits, kept) => `ステップ ${step} まで教師(検証損失 ${bits})、その後は生徒。${kept === "teacher" ? "教師" : "生徒"}を残しました`],
  [/^contexts of up to (\d+) tokens$/, "$1 トークンまでの文脈"], [/^not measured$/, "測定していません"],
  [/^The training loss went from (\S+) to (\S+) bits per byte by step ([\d,]+)(?:; the lowest .+ loss was (\S+))?\.$/,
    (_, first, last, step, lowest) => `ステップ ${step} までに、学習損失は ${first} から ${last} ビット/バイトになりました。${lowest ? `検証損失は最小で ${lowest} でした。` : ""}`],
  [/^yes$/, "する"], [/^no$/, "しない"], [/^on$/, "あり"], [/^off$|^none$/, "なし"], [/^step ([\d,]+)$/, "ステップ $1"],
  [/^from (\S+) of the run$/, "学習の $1 から"], [/^last (\S+) of the run$/, "学習の最後の $1"], [/^induction heads$/, "誘導ヘッド"],
  [/^(\d+) of (\d+) active per token$/, "トークンごとに $2 個のうち $1 個を使う"], [/^([\d,]+) of ([\d,]+)$/, "$2 のうち $1"],
  [/^sharded over the processes$/, "プロセスに分けて持つ"], [/^in each process$/, "各プロセスが持つ"],
];
// Parts of all other values.
const RECORD_WORDS = [
  [/ at the end, on ([\d,]+) bytes, in float32/, "(学習の終わりに $1 バイトで、float32 で測定)"], [/ of answers/, "(答え)"],
  [/; (.*) before fine-tuning/, "。ファインチューニング前は $1"], [/([\d.]+) before, ([\d.]+) bits per byte after/, "前 $1、後 $2 ビット/バイト"],
  [/([\d.]+) bits per byte after/, "後 $1 ビット/バイト"], [/bits per byte/g, "ビット/バイト"], [/\bnetwork /g, "ネットワーク "], [/\badapting /g, "適応込み "],
  [/ \(([\d.]+) epochs?\)/, "($1 エポック)"], [/interrupted/, "中断"], [/([\d,]+) tokens\/s/, "毎秒 $1 トークン"],
  [/(\d+)h\b/, "$1 時間"], [/(\d+)m\b/, "$1 分"], [/(\d+)s\b/, "$1 秒"],
  [/hidden size (\d+)/, "隠れ次元 $1"], [/ \((\d+) for keys and values\)/, "(キーとバリューは $1)"], [/(\d+) layers?\b/, "$1 層"], [/(\d+) heads?\b/, "ヘッド $1 個"],
  [/(\d+) processes, each/, "$1 プロセス、それぞれ"], [/(\d+) threads?\b/, "$1 スレッド"], [/\bcpu\b/, "CPU"], [/\(embedding ([\d.e-]+)\)/, "(埋め込み $1)"],
  [/^at most ([\d,]+)/, "最大 $1"], [/^about ([\d,]+)/, "約 $1"], [/^weight /, "重み "], [/ x /g, " × "],
  [/([\d.,]+) epochs?\b/, "$1 エポック"], [/([\d,]+) bytes\b/, "$1 バイト"], [/([\d,]+) tokens?\b/g, "$1 トークン"], [/([\d,]+) steps?\b/, "$1 ステップ"],
  [/([\d,]+) parameters\b/, "パラメータ $1 個"], [/([\d,]+) conversations?\b/, "$1 件の会話"], [/, /g, "、"],
];

function recordName(name) {
  if (language === "en") return name;
  return RECORD_NAMES[name] ?? RECORD_NAME_RULES.reduce((text, [english, japanese]) => text.replace(english, japanese), name);
}

function recordValue(name, value) {
  if (language === "en" || AS_IT_IS.includes(name)) return value;
  const whole = RECORD_VALUES.find(([english]) => english.test(value));
  return (whole ? [whole] : RECORD_WORDS).reduce((text, [english, japanese]) => text.replace(english, japanese), value);
}
