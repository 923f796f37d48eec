"""Writes the English-Japanese translations of this directory; they are kept beside it, so this need not be run.

    python examples/make_translations.py

A small grammar composes each sentence in both languages from the same parts, and only what makes sense: people eat
food and read books. An English sentence has one Japanese translation, and the other way round. A tenth of the
sentences, in both directions, is in translate-test.tsv only; all of their words are in translate.tsv.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

HERE = Path(__file__).parent
COUNTS = {"activities": 1050, "events": 950, "descriptions": 400}  # sentences of each kind
HEADER = ("source", "target")

# ---- words: English, Japanese

STATEMENT_SUBJECTS = {
    "I": "私",
    "we": "私たち",
    "my father": "父",
    "my mother": "母",
}  # nobody asks: do I drink tea?
QUESTION_SUBJECTS = {"you": "あなた"}
SUBJECTS = {"he": "彼", "she": "彼女", "they": "彼ら", "Ken": "ケン", "Anna": "アンナ", "the teacher": "先生"}
PLURAL_SUBJECTS = ("I", "you", "we", "they")  # without -s: I drink

TIMES = {
    "present": {"every day": "毎日", "in the morning": "朝", "on Sundays": "日曜日に"},
    "past": {"yesterday": "昨日", "this morning": "今朝", "on Monday": "月曜日に"},
    "future": {"tomorrow": "明日", "on Monday": "月曜日に"},
}
PLACES = {
    "at home": "家", "at school": "学校", "in the park": "公園", "in the library": "図書館", "in the kitchen": "台所",
    "in the garden": "庭", "at the station": "駅", "on the train": "電車", "in Tokyo": "東京", "in London": "ロンドン",
}  # fmt: skip
NUMBERS = {"two": "二", "three": "三", "four": "四", "five": "五"}
ADJECTIVES = {  # without the ending い
    "red": "赤", "blue": "青", "black": "黒", "white": "白", "big": "大き", "small": "小さ", "new": "新し", "old": "古",
}  # fmt: skip
STATEMENT_OWNERS, QUESTION_OWNERS = {"my": "私の"}, {"your": "あなたの"}
OWNERS = {"his": "彼の", "her": "彼女の"}
POINTERS = {"this": "この", "that": "あの"}


@dataclass(frozen=True)
class Verb:
    english: tuple[str, str, str]  # eat, eats, ate
    japanese: str  # before ます
    objects: dict[str, str]
    places: tuple[str, ...] = ()
    particle: str = "を"


ACTIVITIES = (
    Verb(("eat", "eats", "ate"), "食べ",
         {"apples": "りんご", "eggs": "卵", "bread": "パン", "rice": "ご飯", "fish": "魚", "cheese": "チーズ"},
         ("at home", "at school", "in the park", "in the kitchen")),
    Verb(("drink", "drinks", "drank"), "飲み",
         {"tea": "お茶", "coffee": "コーヒー", "water": "水", "milk": "牛乳", "juice": "ジュース"},
         ("at home", "at school", "in the kitchen", "in the garden", "at the station")),
    Verb(("read", "reads", "read"), "読み",
         {"books": "本", "newspapers": "新聞", "letters": "手紙", "magazines": "雑誌"},
         ("at home", "in the park", "in the library", "in the garden", "on the train")),
    Verb(("write", "writes", "wrote"), "書き", {"letters": "手紙", "poems": "詩", "stories": "物語"},
         ("at home", "in the library", "in the garden", "on the train")),
    Verb(("study", "studies", "studied"), "勉強し",
         {"English": "英語", "Japanese": "日本語", "history": "歴史", "music": "音楽"},
         ("at home", "at school", "in the library", "on the train", "in Tokyo", "in London")),
    Verb(("speak", "speaks", "spoke"), "話し", {"English": "英語", "Japanese": "日本語"},
         ("at home", "at school", "in London", "in Tokyo")),
    Verb(("play", "plays", "played"), "し", {"soccer": "サッカー", "tennis": "テニス", "baseball": "野球"},
         ("at school", "in the park", "in Tokyo")),
    Verb(("play", "plays", "played"), "弾き", {"the piano": "ピアノ", "the guitar": "ギター"},
         ("at home", "at school", "in London")),
    Verb(("watch", "watches", "watched"), "見", {"movies": "映画", "television": "テレビ", "soccer": "サッカー"},
         ("at home", "at school")),
    Verb(("listen to", "listens to", "listened to"), "聞き", {"music": "音楽", "the radio": "ラジオ", "songs": "歌"},
         ("at home", "in the park", "in the kitchen", "on the train")),
    Verb(("make", "makes", "made"), "作り", {"soup": "スープ", "cakes": "ケーキ", "toys": "おもちゃ"},
         ("at home", "at school")),
    Verb(("go", "goes", "went"), "行き",
         {"to school": "学校", "to the park": "公園", "to the library": "図書館", "to the station": "駅",
          "to the sea": "海", "to Tokyo": "東京"}, particle="に"),
)  # fmt: skip


@dataclass(frozen=True)
class Noun:
    japanese: str
    counter: str  # Japanese counts books in 冊, animals in 匹
    adjectives: tuple[str, ...]


ANY = tuple(ADJECTIVES)
ANIMAL = ("black", "white", "big", "small")
NOUNS = {
    "hat": Noun("帽子", "つ", ANY), "bag": Noun("かばん", "つ", ANY), "chair": Noun("椅子", "つ", ANY),
    "book": Noun("本", "冊", ANY), "umbrella": Noun("傘", "本", ANY), "car": Noun("車", "台", ANY),
    "flower": Noun("花", "本", ("red", "blue", "white", "big", "small")),
    "apple": Noun("りんご", "つ", ("red", "big", "small")), "egg": Noun("卵", "つ", ("white", "big", "small")),
    "dog": Noun("犬", "匹", ANIMAL), "cat": Noun("猫", "匹", ANIMAL), "rabbit": Noun("うさぎ", "匹", ANIMAL),
    "owl": Noun("ふくろう", "羽", ("white", "big", "small")),
}  # fmt: skip
THINGS = ("hat", "bag", "chair", "book", "umbrella", "car", "flower")
ANIMALS = ("dog", "cat", "rabbit", "owl")
EVENTS = (  # (verb, its objects, its places, its tenses)
    (Verb(("buy", "buys", "bought"), "買い", {}, ("in Tokyo", "in London")), (*THINGS, "apple", "egg"),
     ("past", "future")),
    (Verb(("sell", "sells", "sold"), "売り", {}, ("in Tokyo", "in London")), THINGS, ("past", "future")),
    (Verb(("draw", "draws", "drew"), "描き", {}, ("at home", "at school", "in the park")),
     (*THINGS, *ANIMALS), ("past", "future")),
    (Verb(("see", "sees", "saw"), "見", {}, ("in the park", "in the garden", "in Tokyo")), ANIMALS, ("past",)),
    (Verb(("lose", "loses", "lost"), "なくし", {}, ("at school", "in the park", "at the station", "on the train")),
     ("hat", "bag", "book", "umbrella"), ("past",)),
)  # fmt: skip

# ---- sentences

Words = list[
    tuple[str, str]
]  # (text, part of the sentence that it is or belongs to), in the order of the language
MOODS = ("statement", "negation", "question")


@dataclass(frozen=True)
class Sentence:
    english: Words
    japanese: Words

    def texts(self) -> tuple[str, str]:
        """The sentence in English and in Japanese."""
        text = " ".join(text for text, _ in self.english)
        end = "?" if self.japanese[-1][0].endswith("か") else "."
        return text[0].upper() + text[1:] + end, "".join(text for text, _ in self.japanese) + "。"


def english_clause(subject: str, verb: Verb, tense: str, mood: str, rest: Words) -> Words:
    """he, eat, past, question, apples -> did he eat apples"""
    base, third, past = verb.english
    is_plural = subject in PLURAL_SUBJECTS
    helper = {"present": "do" if is_plural else "does", "past": "did", "future": "will"}[tense]
    if mood == "question":
        return [(helper, "verb"), (subject, "subject"), (base, "verb"), *rest]
    if mood == "negation":
        return [(subject, "subject"), (f"{helper} not {base}", "verb"), *rest]
    form = {"present": base if is_plural else third, "past": past, "future": f"will {base}"}[tense]
    return [(subject, "subject"), (form, "verb"), *rest]


def japanese_verb(verb: Verb, tense: str, mood: str) -> str:
    """eat, past, question -> 食べましたか"""
    endings = {"statement": "ました", "negation": "ませんでした", "question": "ましたか"}
    if tense != "past":
        endings = {"statement": "ます", "negation": "ません", "question": "ますか"}
    return verb.japanese + endings[mood]


def subjects(mood: str) -> dict[str, str]:
    return SUBJECTS | (QUESTION_SUBJECTS if mood == "question" else STATEMENT_SUBJECTS)


def clauses(verb: Verb, tense: str, mood: str, english: Words, japanese: Words) -> Iterator[Sentence]:
    """Everyone who can do something, everywhere and at any time; given the object in both languages."""
    ending = (japanese_verb(verb, tense, mood), "verb")
    for (subject, who), place, (time, when) in product(
        subjects(mood).items(), ("", *verb.places), TIMES[tense].items()
    ):
        if mood == "negation" and time == "every day":
            continue  # I do not drink tea every day: never, or not on all days?
        where = [(PLACES[place] + "で", "place")] if place else []
        rest = [*english, *([(place, "place")] if place else []), (time, "time")]
        yield Sentence(
            english_clause(subject, verb, tense, mood, rest),
            [(who + "は", "subject"), (when, "time"), *where, *japanese, ending],
        )


def activities() -> Iterator[Sentence]:
    """Anna does not read books on the train on Sundays."""
    for verb, tense, mood in product(ACTIVITIES, TIMES, MOODS):
        for thing, what in verb.objects.items():
            yield from clauses(verb, tense, mood, [(thing, "object")], [(what + verb.particle, "object")])


def events() -> Iterator[Sentence]:
    """We saw two black cats in the garden yesterday."""
    for verb, nouns, tenses in EVENTS:
        for noun, tense, mood in product(nouns, tenses, MOODS):
            for adjective, number in product(("", *NOUNS[noun].adjectives), ("", *NUMBERS)):
                if not (number and mood == "negation"):
                    yield from clauses(verb, tense, mood, *noun_phrase(noun, adjective, number))


def noun_phrase(noun: str, adjective: str, number: str) -> tuple[Words, Words]:
    """cat, black, two -> two black cats, 黒い猫を二匹"""
    article = "an" if (adjective or noun)[0] in "aeiou" else "a"
    english = [(number, "number") if number else (article, "object")]
    english += [(adjective, "adjective")] if adjective else []
    japanese = [(ADJECTIVES[adjective] + "い", "adjective")] if adjective else []
    japanese += [(NOUNS[noun].japanese + "を", "object")]
    japanese += [(NUMBERS[number] + NOUNS[noun].counter, "number")] if number else []
    return [*english, (noun + "s" * bool(number), "object")], japanese


def descriptions() -> Iterator[Sentence]:
    """That umbrella was not new."""
    for noun, form, mood in product(NOUNS, ("is", "was"), MOODS):
        owners = (
            {} if noun == "owl" else OWNERS | (QUESTION_OWNERS if mood == "question" else STATEMENT_OWNERS)
        )
        for adjective, (owner, whose) in product(NOUNS[noun].adjectives, (POINTERS | owners).items()):
            thing: Words = [(owner, "owner"), (noun, "subject")]
            verb = (form + " not" * (mood == "negation"), "adjective")
            yield Sentence(
                [*([verb, *thing] if mood == "question" else [*thing, verb]), (adjective, "adjective")],
                [(whose, "owner"), (NOUNS[noun].japanese + "は", "subject"),
                 (japanese_adjective(adjective, form, mood), "adjective")],
            )  # fmt: skip


def japanese_adjective(adjective: str, form: str, mood: str) -> str:
    """new, was, negation -> 新しくなかったです"""
    ending = {"is": "い", "was": "かった"}[form]
    negation = "くな" * (mood == "negation")
    return f"{ADJECTIVES[adjective]}{negation}{ending}です{'か' * (mood == 'question')}"


# ---- files


def sentences() -> list[Sentence]:
    """Those of the files, in random order."""
    rng = random.Random(1)
    kinds = {"activities": activities, "events": events, "descriptions": descriptions}
    chosen = [
        sentence for kind, count in COUNTS.items() for sentence in rng.sample(list(kinds[kind]()), count)
    ]
    rng.shuffle(chosen)
    return chosen


def split(chosen: list[Sentence]) -> tuple[list[Sentence], list[Sentence]]:
    """(nine tenths, a tenth)"""
    tenth = len(chosen) // 10
    return chosen[tenth:], chosen[:tenth]


def table(rows: list[Sentence]) -> str:
    """Two rows for a sentence: into Japanese, and back."""
    lines = [HEADER]
    for english, japanese in map(Sentence.texts, rows):
        lines += [(english, japanese), (japanese, english)]
    return "".join("\t".join(line) + "\n" for line in lines)


if __name__ == "__main__":
    for name, rows in zip(("translate.tsv", "translate-test.tsv"), split(sentences()), strict=True):
        (HERE / name).write_text(table(rows), encoding="utf-8", newline="\n")
