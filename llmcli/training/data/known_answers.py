"""The known answers that a run stores in the model file, and the confidence below which a question gets none
of them.

That minimum is the mean of TYPICAL, the best value for several sets of questions, and the confidence that
SHARE of some unrelated questions do not reach.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import pairwise

import numpy as np

from llmcli import units
from llmcli.data.conversations.messages import Conversation, Message
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError, usage
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.training_record import KnownAnswers, KnownAnswerShares
from llmcli.generation.chat import open_assistant
from llmcli.generation.known_answers import AnswerFinder, language_of
from llmcli.models.runtime import Runtime
from llmcli.training.data.conversations import ConversationInputs, PreparedConversations

MAX_BYTES = 1_000_000  # maximum size of the questions and answers in a model file
TYPICAL, SHARE = 0.5, 0.95
# weight of the network's probability; without a base model it is multiplied by 1 - 1 / wordings, because
# after one wording of each question, a network that has read nothing else hardly knows any other
NETWORK_WEIGHT = 0.25
MAX_QUESTIONS = 64  # unrelated or held-out questions
MIN_QUESTIONS = 4  # unrelated questions for which a minimum is fitted
UNRELATED_SHARE = 0.7  # share of the time for unrelated questions
LARGE, MAX_QUESTIONS_LARGE = 20e6, 8  # a model with this many parameters takes a second for a question
UNRELATED = {
    "en": (
        "What is the tallest building in the world?",
        "How do I grow tomatoes?",
        "Who invented the telephone?",
        "When did the Second World War end?",
        "Can you write a letter to my boss?",
        "How many people live in China?",
        "Where can I watch the game tonight?",
        "What should I cook for dinner?",
        "Is it going to snow this weekend?",
        "Why is my computer so slow?",
        "How far is it from London to Paris?",
        "What does this word mean?",
        "Do you believe in ghosts?",
        "Which team will win the cup?",
        "How do I tie a tie?",
        "What is the meaning of life?",
        "Give me a recipe for pancakes.",
        "Who is your favorite singer?",
        "How much does an elephant weigh?",
        "Are you a robot?",
        "How do I learn to play the guitar?",
        "What time is it in Tokyo?",
        "Which language is spoken in Egypt?",
        "Tell me something about volcanoes.",
        "My car does not start, what should I do?",
        "How can I sleep better?",
        "What is 25 percent of 80?",
        "Is it safe to swim after eating?",
        "Where did I put my keys?",
        "Does this medicine have side effects?",
        "Hello, how are you today?",
        "Explain how a steam engine works.",
    ),
    "ja": (
        "世界でいちばん高い建物は何ですか。",
        "トマトの育て方を教えてください。",
        "電話を発明したのは誰ですか。",
        "第二次世界大戦はいつ終わりましたか。",
        "上司への手紙を書いてくれますか。",
        "中国の人口はどのくらいですか。",
        "今夜の試合はどこで見られますか。",
        "夕食は何を作ればいいですか。",
        "週末は雪が降りますか。",
        "パソコンが遅いのはなぜですか。",
        "東京から大阪までどのくらいかかりますか。",
        "この言葉はどういう意味ですか。",
        "幽霊を信じますか。",
        "どのチームが優勝しますか。",
        "ネクタイの結び方は？",
        "人生の意味とは何でしょうか。",
        "パンケーキの作り方を知りたいです。",
        "好きな歌手は誰ですか。",
        "象の重さは何キロですか。",
        "あなたはロボットですか。",
        "ギターを弾けるようになりたいのですが。",
        "ロンドンは今何時ですか。",
        "エジプトでは何語が話されていますか。",
        "火山について説明してください。",
        "車が動かないときはどうしたらいいですか。",
        "よく眠れる方法はありますか。",
        "八十の二十五パーセントはいくつですか。",
        "鍵をどこに置きましたか。",
        "この薬に副作用はありますか。",
        "こんにちは、お元気ですか。",
        "おすすめの小説を教えて。",
        "蒸気機関の仕組みは？",
    ),
}


def check_known_answers(conversations: ConversationInputs | None, *, adapter_only: bool) -> None:
    """Raise LLMError if the run has no known answers to store, too many, or no place for them."""
    if adapter_only:
        raise usage("adapters have no place for `known_answers`; leave out `adapter_only`")
    if conversations is None:
        raise usage(
            "`known_answers` needs questions and answers, and the training data are plain text; leave it out"
        )
    pairs = pairs_of(conversation for file in conversations.files for conversation in file.conversations)
    if len({answer for _, answer in pairs}) < 2:
        raise LLMError("`known_answers` needs at least two different answers to questions; leave it out")
    if (size := sum(len(text.encode("utf-8")) for pair in pairs for text in pair)) > MAX_BYTES:
        raise LLMError(
            f"the questions and answers have {units.size(size)}, and a model file stores at most "
            f"{units.size(MAX_BYTES)} of `known_answers`; leave it out, or train on fewer"
        )


def pairs_of(conversations: Iterable[Conversation]) -> tuple[tuple[str, str], ...]:
    """Return the different questions with their answers, in order."""
    pairs = (pair for conversation in conversations for pair in pairwise(conversation.messages))
    return tuple(
        dict.fromkeys(
            (question.content, answer.content.strip())
            for question, answer in pairs
            if (question.role, answer.role) == ("user", "assistant") and answer.is_learned
        )
    )


def store_known_answers(checkpoint: Checkpoint, conversations: PreparedConversations) -> None:
    """Store the questions and answers of a run in the model: those it was trained on, and those of the same
    files that are held out or left out, with TYPICAL as the minimum confidence."""
    divided, training = conversations.divided, pairs_of(conversations.split.training)
    held_out = conversations.split.held_out if isinstance(divided.inputs.held_out, float) else []
    pairs = tuple(dict.fromkeys((*training, *pairs_of([*held_out, *divided.left_out]))))
    wordings = len(training) / max(1, len({answer for _, answer in training}))
    weight = round(NETWORK_WEIGHT * (1 if checkpoint.record.base else 1 - 1 / wordings), 4)
    checkpoint.known_answers = KnownAnswers(pairs=pairs, min_confidence=TYPICAL, network_weight=weight)


def question_limits(parameters: int) -> tuple[int, int]:
    """Return the largest numbers of unrelated and of held-out questions for a model of this size."""
    most = MAX_QUESTIONS_LARGE if parameters > LARGE else MAX_QUESTIONS
    return min(most, len(UNRELATED["en"])), most


class _TimeOverError(Exception):
    """There is no time left for a question."""


def fit_min_confidence(
    checkpoint: Checkpoint,
    runtime: Runtime,
    tokenizer: Tokenizer,
    conversations: PreparedConversations,
    seconds: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    on_note: Callable[[str], None] = lambda note: None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> KnownAnswerShares:
    """Fit the minimum confidence of the known answers stored in a model, with `seconds` for all questions.
    Returns how it answers held-out questions that have a training answer. `on_progress` receives the
    completed share, 0 to 1."""
    known = checkpoint.known_answers
    assert known is not None
    began, limits = time.monotonic(), question_limits(checkpoint.parameters)
    assistant = open_assistant(checkpoint, runtime, tokenizer)
    weight, training = known.network_weight, pairs_of(conversations.split.training)
    finder = AnswerFinder(KnownAnswers(pairs=training, network_weight=weight))
    unrelated = UNRELATED[language_of(finder.answers)][: limits[0]]
    held_out = [pair for pair in pairs_of(conversations.split.held_out) if pair[1] in finder.answers][
        : limits[1]
    ]
    times = [0.0]  # seconds for each question so far

    def ask(questions: Sequence[str], end: float) -> list[tuple[str, float]]:
        """Return (answer, confidence) for as many questions as there is time for."""

        def check(expected: float = 0.0) -> None:
            if stop() or time.monotonic() + expected > end:
                raise _TimeOverError

        answers = []
        with suppress(_TimeOverError):
            for question in questions:
                check(max(times))
                asked = time.monotonic()
                answer = finder.find(assistant, [Message("user", question)], check)
                answers.append((answer.text, answer.confidence))
                times.append(time.monotonic() - asked)
                on_progress(len(times) / (len(unrelated) + len(held_out) + 2))
        return answers

    on_progress(0.0)
    confidences = [confidence for _, confidence in ask(unrelated, began + UNRELATED_SHARE * seconds)]
    least = TYPICAL
    if len(confidences) >= MIN_QUESTIONS:
        least = round((TYPICAL + float(np.quantile(confidences, SHARE))) / 2, 4)
    checkpoint.known_answers = KnownAnswers(pairs=known.pairs, min_confidence=least, network_weight=weight)
    if len(confidences) < len(unrelated) and not stop():
        how = "was fitted" if len(confidences) >= MIN_QUESTIONS else f"has its default, {TYPICAL}"
        number = f"{len(confidences)} of {len(unrelated)} questions"
        on_note(f"the minimum confidence of known answers {how}: there was time for {number}")
    found = ask([question for question, _ in held_out], began + seconds)
    on_progress(1.0)
    right = sum(
        c >= least and text == answer for (text, c), (_, answer) in zip(found, held_out, strict=False)
    )
    unanswered = sum(confidence < least for _, confidence in found)
    return KnownAnswerShares(len(found), right, len(found) - right - unanswered)
