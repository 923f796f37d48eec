"""Runtimes with known logits, and tokenizers that are a table."""

import numpy as np

from llmcli.data.tokenizers.vocabulary import Vocabulary
from llmcli.models.runtime import removed_by_shift

MAX_EVALUATIONS = 2000  # more than that count as an endless loop


class FakeRuntime:
    """A runtime whose logits are a function of the tokens in its cache; records its calls."""

    parameters = 1

    def __init__(self, context, logits_of, draft_tokens=0):
        self.context = context
        self.logits_of = logits_of
        self.draft_tokens = draft_tokens
        self.cached = []
        self.seen = []
        self.evaluations = 0

    @property
    def length(self):
        return len(self.cached)

    def prefill(self, ids):
        self.evaluations += 1
        return self._process(ids)

    def step(self, token):
        return self.prefill([token])

    def logits(self, ids):
        self.evaluations += 1
        return np.stack([self._process([token]) for token in ids])

    logits_of_draft = logits

    def read(self, ids):
        self._process(ids)

    def continuation_logits(self, texts):
        for ids in texts:
            yield self.logits(ids)
            self.rewind(self.length - len(ids))

    def rewind(self, length=0):
        del self.cached[length:]

    def begin_prompt(self, cached, tokens, written):
        self.rewind(cached)

    def undo_step(self, length):
        self.rewind(length)

    def shift(self, ids):
        removed = removed_by_shift(self.length)
        del self.cached[removed.start : removed.stop]
        return removed

    def _process(self, ids):
        assert len(ids) > 0
        self.cached += ids
        assert self.length <= self.context
        self.seen.append(list(self.cached))
        assert self.evaluations <= MAX_EVALUATIONS, "generation does not end"
        return np.asarray(self.logits_of(tuple(self.cached)), np.float32)


class Table:
    """A tokenizer given by a table: id 0 ends the text, id n has the n-th text. Text is encoded greedily with the
    longest tokens; the last word begins with the last space."""

    eos_id, eos_ids, bos_ids = 0, frozenset({0}), []

    def __init__(self, *texts):
        self.token_bytes = [b"", *(text if isinstance(text, bytes) else text.encode() for text in texts)]
        self.vocabulary = Vocabulary(self.token_bytes)

    def encode(self, text):
        data, ids = text.encode(), []
        while data:
            ids.append(max((i for i, t in enumerate(self.token_bytes) if t and data.startswith(t)), key=self._length))
            data = data[self._length(ids[-1]) :]
        return ids

    def _length(self, i):
        return len(self.token_bytes[i])

    def split_last_word(self, text):
        cut = max(0, text.rfind(" "))
        return text[:cut], text[cut:]


class Digits(Table):
    """A table whose prompts are written as digits, "1" for id 1, and have no last word."""

    def encode(self, text):
        return [int(c) for c in text]

    def split_last_word(self, text):
        return text, ""
