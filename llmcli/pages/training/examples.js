// Texts to begin with, drawn from small grammars: {a|b} is one of a and b, $1 the first word of one of the rows.
const EXAMPLE_BYTES = 20000;
const GRAMMARS = {
  exampleEnglish: { name: "english.txt", prompt: "I like to", end: "{ | |\n}", rows: [""], sentences: [
    "I like to {eat {apples|bread|soup|rice|warm pancakes|cheese}|drink {tea|milk|cold water|orange juice}}.",
    "{My {sister|brother}|Our teacher|The old man|Anna|Tom} likes to {read {books|letters}|sing {songs|in the choir}|play {chess|the piano|football}}.",
    "The {cat|dog|baby} {sleeps|is lying|likes to sleep} on the {sofa|warm mat|bed} {in the afternoon|all day|when it rains}.",
    "The {{sparrow|swallow|crow} flies over the {roof|river|field} and sings|{trout|carp|goldfish} swims in the {pond|river|clear water}}.",
    "In the {morning {we|they} drink {coffee|tea} and eat {bread|eggs}|evening {we|they} {watch the stars|tell stories|go to bed}}.",
    "When it {rains, {we stay|the children stay} at home|snows, the children build a snowman|is hot, everybody swims in the lake}.",
    "Where is {the {cat|key|ball}|my {book|coat|hat}}? It is {under the table|behind the door|in the garden}.",
  ] },
  exampleJapanese: { name: "japanese.txt", prompt: "私は毎朝、", end: "{||\n}", rows: [""], sentences: [
    "{私|母|父|姉|弟}は毎朝、{{パン|卵|りんご|ご飯}を食べます|{お茶|牛乳|冷たい水}を飲みます|公園を走ります}。",
    "{猫|犬|赤ちゃん}は{ソファー|マット|布団}の上で{寝ています|遊んでいます}。",
    "{{すずめ|つばめ|からす}が{川|畑|屋根}の上を飛んで|{池|川}の中を{金魚|鯉|小さな魚}が泳いで}います。",
    "{雨が降ると、{家で本を読みます|傘をさして出かけます}|雪が降ると、子どもたちは雪だるまを作ります|暑い日には、海で泳ぎます}。",
    "{夜|夕方}になると、{星が見えます|みんなで話をします|家に帰ります}。",
    "{妹|兄|先生}は{本を読む|歌を歌う|ピアノを弾く|将棋をさす}のが好きです。",
    "{かぎ|帽子|ボール}はどこですか。{机の下|ドアの後ろ|庭}にあります。",
  ] },
  exampleQuestions: { name: "questions.txt", prompt: "Question: What does a cat eat?\nAnswer:", end: "\n\n", rows: [
    "cat fish house meow", "cow grass field moo", "dog meat house bark", "duck bread pond quack", "frog flies pond croak", "horse hay stable neigh",
    "lion meat savanna roar", "mouse cheese barn squeak", "hen grain yard cluck", "pig corn barn grunt", "sheep grass field bleat", "wolf meat forest howl",
  ], sentences: [
    "Question: What does {a|the|your} $1 eat?\nAnswer: {It eats|A $1 eats} $2.", "Question: Where {does a|does the|can a} $1 live?\nAnswer: {It lives|A $1 lives} in a $3.",
    "Question: What sound does {a|the} $1 make?\nAnswer: You can hear it $4.", "Question: Which animal likes $2 and lives in a $3?\nAnswer: The $1.",
    "Question: Does a $1 {fly a plane|read books|drive a car}?\nAnswer: No, it does not. It likes to {eat $2|$4}.",
  ] },
};
const toUtf8 = (text) => new TextEncoder().encode(text);

// The same text at each call.
function exampleText({ sentences, rows, end }) {
  let state = 1, text = "";
  const draw = (choices) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // the linear congruential generator of Numerical Recipes
    return choices[Math.floor((state / 2 ** 32) * choices.length)];
  };
  while (toUtf8(text).length < EXAMPLE_BYTES) {
    const words = draw(rows).split(" ");
    let sentence = (draw(sentences) + end).replace(/\$(\d)/g, (_, i) => words[i - 1]);
    while (sentence.includes("{")) sentence = sentence.replace(/\{([^{}]*)\}/g, (_, choices) => draw(choices.split("|")));
    text += sentence;
  }
  return text;
}
