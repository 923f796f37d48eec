"""Writes the corpora of this directory; they are kept beside it, so this need not be run.

    python examples/make_corpora.py

Each corpus is made of rounds. In a round every sentence occurs exactly as often as its counts say, in a random
order, so that the frequencies in any part of the text are those of the whole.
"""

import random
from pathlib import Path

HERE = Path(__file__).parent

# In every 48 sentences "I like to eat ...", 18 end in apple and 7 in banana: 0.375 and 0.146.
ENGLISH = {
    "I like to eat": {"apple": 18, "banana": 7, "bread": 5, "rice": 5, "soup": 4, "cheese": 4, "fish": 3, "cake": 2},
    "I like to drink": {"tea": 12, "water": 9, "milk": 6, "juice": 5, "coffee": 4},
    "I like to read": {"books": 10, "letters": 4, "maps": 2},
    "We like to play": {"football": 8, "chess": 6, "cards": 4, "music": 2},
    "She likes to eat": {"bread": 9, "soup": 6, "apple": 3, "cake": 2},
    "He likes to drink": {"coffee": 10, "water": 6, "tea": 4},
    "They went to the": {"market": 8, "river": 6, "school": 4, "forest": 2},
    "The cat likes to": {"sleep": 12, "hide": 5, "jump": 3},
}

# 「私は」 48 文のうち リンゴ 18、バナナ 7。語の間に空白はない。
JAPANESE = {
    "私は毎朝{}を食べます。": {"リンゴ": 18, "バナナ": 7, "ご飯": 8, "パン": 6, "卵": 5, "魚": 4},
    "私は毎晩{}を飲みます。": {"お茶": 10, "水": 7, "牛乳": 4, "コーヒー": 3},
    "母は市場で{}を買います。": {"野菜": 8, "魚": 6, "花": 4, "パン": 2},
    "猫は{}で眠ります。": {"庭": 7, "箱": 5, "屋根": 4},
    "私たちは公園で{}をします。": {"サッカー": 8, "野球": 5, "散歩": 5, "読書": 2},
    "今日の天気は{}です。": {"晴れ": 9, "雨": 6, "雪": 1},
}


def rounds(sentences: list[str], count: int, seed: int) -> list[str]:
    """`count` times all the sentences, each time in another order."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        rng.shuffle(sentences)
        lines += sentences
    return lines


def english() -> str:
    sentences = [f"{start} {word}." for start, words in ENGLISH.items() for word, n in words.items() for _ in range(n)]
    return "\n".join(rounds(sentences, 24, seed=1)) + "\n"


def japanese() -> str:
    sentences = [start.format(word) for start, words in JAPANESE.items() for word, n in words.items() for _ in range(n)]
    return "\n".join(rounds(sentences, 30, seed=2)) + "\n"


def sums() -> str:
    """Every sum of two numbers below 30, three times, each time in another order; the last in the file are held out."""
    problems = [f"{a} + {b} = {a + b}" for a in range(30) for b in range(30)]
    return "\n".join(rounds(problems, 6, seed=3)) + "\n"


if __name__ == "__main__":
    for name, text in (("food.txt", english()), ("asagohan.txt", japanese()), ("sums.txt", sums())):
        (HERE / name).write_text(text, encoding="utf-8", newline="\n")
