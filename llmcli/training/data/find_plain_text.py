"""Held-out text that shows what training on conversations does to the prediction of plain text."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmcli.data.text.corpus import Corpus
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.tokens import tokenize
from llmcli.errors import LLMError
from llmcli.evaluation.training_text import find_corpus, untrained_part, was_trained_on
from llmcli.formats.checkpoint import Checkpoint
from llmcli.training.data.inputs import Inputs
from llmcli.training.data.plain_text import TOKENS, PlainText, affordable_tokens, windows_of
from llmcli.training.data.prepare import Prepared

MAX_FOUND_BYTES = 64_000_000  # of a base model's training text that is searched for; a longer one would take too long
BYTES_PER_TOKEN = 8  # at most, assumed


def find_plain_text(inputs: Inputs, prepared: Prepared) -> PlainText | None:
    """The held-out text of a run that trains on text first; with a base model, the text that was held out when the base
    was trained, if it is found. None if there is neither, or if there are no conversations."""
    if not prepared.conversations:
        return None
    ids, source = prepared.held_out, "the held-out text"
    if inputs.base and not _is_text_of(inputs.base, inputs.corpus):
        ids = _held_out_text_of(inputs.base, inputs.base_path, prepared.tokenizer)
        source = "the text held out from the base model"
    config = prepared.plan.model
    most = affordable_tokens(config.parameters)
    windows = windows_of(ids, prepared.tokenizer.bos_id, config.max_position_embeddings, most)
    return PlainText(windows, source) if len(windows) else None


def _is_text_of(base: Checkpoint, corpus: Corpus) -> bool:
    """Whether a base model was trained on texts of a corpus."""
    return bool(corpus.documents) and was_trained_on(corpus, base.record)


def _held_out_text_of(base: Checkpoint, path: Path | None, tokenizer: Tokenizer) -> NDArray[np.unsignedinteger]:
    """The tokens of the text that was held out when a base model was trained; none if it is not found."""
    none = tokenize(iter(()), tokenizer)
    try:
        size = sum(document["bytes"] for document in base.record["corpus"])
        if path is None or size > MAX_FOUND_BYTES:
            return none
        corpus = find_corpus(base.record, path)
    except (LLMError, KeyError):
        return none
    return tokenize(untrained_part(corpus, [base.record]).sample(BYTES_PER_TOKEN * TOKENS[1]).texts(), tokenizer)
