"""KL divergence between two versions of a model, such as float32 and int8."""

import math

import numpy as np

from llmcli.config import SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.generation.sampler import Sampler
from llmcli.models.runtime import Runtime, Scorer

SAMPLE_TOKENS = 256


def kl_divergence(reference: Runtime, other: Scorer, tokenizer: Tokenizer) -> float:
    """An estimate of KL(reference || other) in bits per byte, from one text that `reference` samples.

    Needs no test text. Both runtimes must share the tokenizer.
    """
    ids = [tokenizer.bos_id]
    sampler = Sampler(SamplingConfig(temperature=1.0, min_p=0.0))
    reference.rewind()
    count = min(SAMPLE_TOKENS, reference.context - 1)
    logits = reference.prefill(ids)
    while len(ids) <= count:
        ids.append(sampler(logits[: len(tokenizer.token_bytes)], ())[0])
        logits = reference.step(ids[-1])
    byte_count = sum(len(tokenizer.token_bytes[i]) for i in ids[1:])
    window = np.array([ids], np.int64)
    nats = float(other.score(window)[0].sum() - reference.score(window)[0].sum())
    return round(nats / math.log(2) / max(1, byte_count), 6)
