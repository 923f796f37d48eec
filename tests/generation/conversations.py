"""A language of letters for tests of conversations: its tokenizer, its chat template, and models that speak it."""

import numpy as np

from llmcli.data.tokenizers.vocabulary import Vocabulary
from tests.generation.fakes import FakeRuntime

END, USER, ASSISTANT, SYSTEM, PAIR = 0, 27, 28, 29, 30  # tokens besides the letters; PAIR spells "ab"
CONTROL = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}


class Letters:
    """A token for each letter, a is 1; the others are END, the headers of the roles, and PAIR."""

    eos_id, eos_ids, bos_ids, adds_prefix_space = END, frozenset({END}), [], False

    def __init__(self):
        self.token_bytes = [b"", *(bytes([97 + i]) for i in range(26)), b"", b"", b"", b"ab"]
        self.vocabulary = Vocabulary(self.token_bytes, unrestricted=True)

    def encode(self, text):
        """As a BPE would: "ab" becomes one token, although a model may write it as two."""
        ids = []
        for letter in text:
            ids.append(ord(letter) - 96)
            if ids[-2:] == [1, 2]:
                ids[-2:] = [PAIR]
        return ids


class Turns:
    """A template: the header of the role, the content, END."""

    stop_ids = frozenset({END})

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def encode(self, messages, *, add_generation_prompt=False):
        ids = []
        for message in messages:
            ids += [CONTROL[message.role], *self._tokenizer.encode(message.content), END]
        return ids + [ASSISTANT] * add_generation_prompt


class CountingModel(FakeRuntime):
    """A runtime whose next token is a function of those in its cache; counts the tokens that it processes."""

    def __init__(self, next_token, context=1000):
        super().__init__(context, lambda cached: 50 * np.eye(31)[next_token(cached)])
        self.processed = 0

    def _process(self, ids):
        self.processed += len(ids)
        return super()._process(ids)


def answering(*answers):
    """The next token of a model that gives these answers, the first to one question, the second to two, ..."""

    def next_token(cached):
        turns = [i for i, token in enumerate(cached) if token == ASSISTANT]
        if not turns:  # within the first question: nothing is asked for
            return END
        said = len(cached) - turns[-1] - 1
        answer = answers[min(len(turns), len(answers)) - 1]
        return ord(answer[said]) - 96 if said < len(answer) else END

    return next_token
