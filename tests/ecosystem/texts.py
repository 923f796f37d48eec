"""Random strings in many scripts, as a function of a seed."""

import random

ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ", "  \t", "\n", "\r\n",
    ".,;:!?'\"()[]{}<>",
    "+-*/=_|\\&^%$#@~`", "äöüßéèêçñøåœ", "абвгдежзийклмнопрст", "αβγδεζηθικλμν", "אבגדהוזחט", "ابتثجحخدذرزسش",
    "あいうえおかきくけこ", "アイウエオカキクケコー", "日本語漢字食事林檎私", "한국어문장입니다",
    "हिन्दीभाषा", "ไทยภาษา",
    "😀🎉👩‍👩‍👧‍👦🇯🇵❤️", "\u0301\u0308\u200b\u200d\ufeff", "①½²٣४Ⅷ", "𝕬𝖇𝓬", "\u2028\u00a0\u3000",
)  # fmt: skip
WORDS = (
    "the", "The", " I", "'m", "don't", "we'll", "it's", "IT'S", " world", "12345", "3.14", "1,000,000",
    "def f(x):\n    return x\n",
    "for (int i = 0; i < n; i++) {", "<|endoftext|>", "<|im_start|>", "</s>", "https://example.org/a?b=c&d=e", "\n\n\n",
    "    ",
    "私は", "食べる", "東京", "👍🏽", "naïve", "ﬁ", "ß", "e\u0301", "x²", "—", "…", "\t\t", "a\u0000b", "ΑΣ",
)  # fmt: skip


def varied(count: int, seed: int = 0) -> list[str]:
    """`count` strings of words in many languages, digits, code, emoji, white space and combining marks."""
    rng = random.Random(seed)
    result = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            if rng.random() < 0.4:
                parts.append(rng.choice(WORDS))
            else:
                alphabet = rng.choice(ALPHABETS)
                parts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 8))))
            if rng.random() < 0.4:
                parts.append(" ")
        result.append("".join(parts))
    return result
