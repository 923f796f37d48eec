"""The known answers that a run stores in the model file, and the minimum confidence for giving one of them.

The minimum is the mean of two values: TYPICAL, the best for several sets of questions, and the quantile SHARE
of the confidences for unrelated questions.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from llmcli import units
from llmcli.data.conversations.messages import Conversation, Message
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError, OnNote, usage
from llmcli.evaluation.evaluator import OnProgress
from llmcli.evaluation.exact_answers import last_answers, score_known
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.training_record import KnownAnswers, KnownAnswerShares
from llmcli.generation.chat import open_assistant
from llmcli.generation.known_answers import NEAREST, AnswerFinder, language_of
from llmcli.models.runtime import Runtime
from llmcli.training.data.conversations import PreparedConversations
from llmcli.training.planning.cost_model import ASSUMED_COST
from llmcli.training.planning.plan import Plan

MAX_BYTES = 1_000_000  # maximum size of the questions and answers in a model file
TYPICAL = 0.5
SHARE = 0.95
# weight of the network's probability; without a base model it is multiplied by 1 - 1 / wordings, because a
# network trained only on one wording of each question hardly understands others
NETWORK_WEIGHT = 0.25
MAX_QUESTIONS = 64  # unrelated or held-out questions
MIN_QUESTIONS = 4  # minimum number of unrelated questions for fitting the minimum confidence
UNRELATED_SHARE = 0.7  # share of the time for unrelated questions
LARGE = 20e6  # parameters of a model that takes a second per question
MAX_QUESTIONS_LARGE = 8  # unrelated or held-out questions for such a model
# time for fitting
TIME_SHARE = 0.1  # maximum share of the time budget
MIN_SECONDS = 0.5
QUESTION_SECONDS = 0.01  # overhead per question
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


def check_known_answers(conversations: Sequence[Conversation], *, adapter_only: bool) -> None:
    """Raise LLMError if the run has no known answers to store, too many, or a file that cannot store them."""
    if adapter_only:
        raise usage("adapters cannot store `known_answers`; leave out `adapter_only`")
    if not conversations:
        raise usage(
            "`known_answers` needs questions and answers, and the training data are plain text; leave it out"
        )
    pairs = pairs_of(conversations)
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
    """Store the questions and answers of the training files in the model, including held-out and left-out
    ones. The minimum confidence is TYPICAL for now."""
    divided = conversations.divided
    training = pairs_of(conversations.training.texts)
    held_out = () if divided.inputs.validation.conversation_files else conversations.held_out.texts
    pairs = tuple(dict.fromkeys((*training, *pairs_of([*held_out, *divided.left_out]))))
    wordings = len(training) / max(1, len({answer for _, answer in training}))
    weight = round(NETWORK_WEIGHT * (1 if checkpoint.record.base else 1 - 1 / wordings), 4)
    checkpoint.known_answers = KnownAnswers(pairs=pairs, min_confidence=TYPICAL, network_weight=weight)


def _question_limit(parameters: int) -> int:
    """Return the maximum number of unrelated questions, and of held-out questions, for a model of this
    size."""
    return MAX_QUESTIONS_LARGE if parameters > LARGE else MAX_QUESTIONS


def seconds_to_fit(plan: Plan, conversations: PreparedConversations) -> float:
    """Estimate the seconds that `fit_min_confidence` takes for all questions at the measured speed; at most a
    share of the time budget."""
    if plan.train.seconds is None:
        return math.inf
    max_seconds = TIME_SHARE * plan.train.seconds
    if plan.expected is None:
        return max_seconds
    tokens = conversations.training
    # all questions once, and each answer NEAREST - 1 times more
    scored = len(tokens.ids) + (NEAREST - 1) * int(tokens.loss_mask.sum())
    seconds = ASSUMED_COST * scored / len(tokens) / plan.expected.tokens_per_second
    limit = _question_limit(plan.model.parameters)
    questions = limit + min(limit, len(UNRELATED["en"]))  # held-out and unrelated ones
    return max(MIN_SECONDS, min(questions * (seconds + QUESTION_SECONDS), max_seconds))


def _answerable(conversations: PreparedConversations, finder: AnswerFinder) -> list[Conversation]:
    """Return the held-out conversations whose last answer is a known one."""
    return [
        conversation
        for conversation in conversations.held_out.texts
        if any(answer in finder.answers for _, answer in last_answers([conversation]))
    ]


def fit_min_confidence(
    checkpoint: Checkpoint,
    runtime: Runtime,
    tokenizer: Tokenizer,
    conversations: PreparedConversations,
    seconds: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    on_note: OnNote = lambda note: None,
    on_progress: OnProgress = lambda share: None,
) -> KnownAnswerShares:
    """Fit the minimum confidence of the known answers stored in a model, with `seconds` for all questions.
    Returns the model's score on held-out questions that have a training answer. `on_progress` receives the
    completed share, 0 to 1."""
    known = checkpoint.known_answers
    assert known is not None
    end = time.monotonic() + seconds
    limit = _question_limit(checkpoint.parameters)
    assistant = open_assistant(checkpoint, runtime, tokenizer)
    weight = known.network_weight
    pairs = pairs_of(conversations.training.texts)
    training = KnownAnswers(pairs=pairs, network_weight=weight)
    finder = AnswerFinder(training)
    confidences = list[float]()
    slowest = 0.0
    unrelated = UNRELATED[language_of(finder.answers)][:limit]
    on_progress(0.0)
    for question in unrelated:
        began = time.monotonic()
        if stop() or began + slowest > end - (1 - UNRELATED_SHARE) * seconds:
            break
        confidences.append(finder.find(assistant, [Message("user", question)]).confidence)
        slowest = max(slowest, time.monotonic() - began)
        on_progress(len(confidences) / len(unrelated) / 2)
    is_fitted = len(confidences) >= MIN_QUESTIONS
    min_confidence = (
        round((TYPICAL + float(np.quantile(confidences, SHARE))) / 2, 4) if is_fitted else TYPICAL
    )
    checkpoint.known_answers = KnownAnswers(
        pairs=known.pairs, min_confidence=min_confidence, network_weight=weight
    )
    if len(confidences) < len(unrelated) and not stop():
        outcome = "was fitted" if is_fitted else f"has its default, {TYPICAL}"
        number = f"{len(confidences)} of {len(unrelated)} questions"
        on_note(f"the minimum confidence of known answers {outcome}: there was time for {number}")
    answerable = _answerable(conversations, finder)
    in_time = 0 if stop() or not slowest else (end - time.monotonic()) / slowest
    asked_about = answerable[: int(max(0.0, min(limit, in_time)))]
    score = score_known(
        asked_about,
        assistant,
        AnswerFinder(training, min_confidence),
        lambda share: on_progress((1 + share) / 2),
        lambda: stop() or time.monotonic() + slowest > end,
    )
    on_progress(1.0)
    is_partial = score.questions < len(answerable)
    return score._replace(answerable=len(answerable) if is_partial else None)
