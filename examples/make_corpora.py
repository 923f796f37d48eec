"""Writes the corpora of this directory; they are kept beside it, so this need not be run.

    python examples/make_corpora.py

In the first two every sentence occurs exactly as often as its counts say, in a random order.
"""

import random
from pathlib import Path

HERE = Path(__file__).parent

# In every 48 sentences "I like to eat ...", 18 end in apple and 7 in banana: 0.375 and 0.146.
ENGLISH = {
    "I like to eat": {
        "apple": 18,
        "banana": 7,
        "bread": 5,
        "rice": 5,
        "soup": 4,
        "cheese": 4,
        "fish": 3,
        "cake": 2,
    },
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
    "私は毎朝{}を食べます。": {"リンゴ": 18, "バナナ": 7, "納豆": 8, "パン": 6, "卵": 5, "魚": 4},
    "私は毎晩{}を飲みます。": {"お茶": 10, "水": 7, "牛乳": 4, "コーヒー": 3},
    "母は市場で{}を買います。": {"野菜": 8, "魚": 6, "花": 4, "パン": 2},
    "猫は{}で眠ります。": {"庭": 7, "箱": 5, "屋根": 4},
    "私たちは公園で{}をします。": {"サッカー": 8, "野球": 5, "散歩": 5, "読書": 2},
    "今日の天気は{}です。": {"晴れ": 9, "雨": 6, "雪": 1},
}


NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Finn", "Grace", "Henry"]
MEANWHILE = [
    "It is a sunny day.", "The bus is late.", "A dog barks.", "The wind is cold.", "Lunch is ready.", "Snow falls.",
]  # fmt: skip
THINGS = ["ball", "kite", "drum", "book", "boat", "lamp", "hat", "bell"]


def shuffled(counted: dict[str, int], seed: int) -> list[str]:
    """Every sentence 40 times its count, in random order.

    4 of the 40 come last, so that the tenth of the text that is held out is like the rest.
    """
    rng = random.Random(seed)
    lines = []
    for times in (36, 4):
        part = [sentence for sentence, count in counted.items() for _ in range(count * times)]
        rng.shuffle(part)
        lines += part
    return lines


def english() -> str:
    return "\n".join(
        shuffled({f"{a} {b}.": n for a, words in ENGLISH.items() for b, n in words.items()}, seed=1)
    )


def japanese() -> str:
    counted = {a.format(b): n for a, words in JAPANESE.items() for b, n in words.items()}
    return "\n".join(shuffled(counted, seed=2))


def stories() -> str:
    """Who has what at the beginning of a line must be remembered until its end."""
    rng = random.Random(3)
    lines = []
    for _ in range(2500):
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        between = " ".join(rng.sample(MEANWHILE, 2))
        lines.append(f"{name} has a {thing}. {between} {name} plays with the {thing}.")
    return "\n".join(lines)


if __name__ == "__main__":
    for name, text in (("food.txt", english()), ("asagohan.txt", japanese()), ("stories.txt", stories())):
        (HERE / name).write_text(text + "\n", encoding="utf-8", newline="\n")
