"""SmolLM2, a published base model: fine-tuned on English prose, it predicts the text better than a new model
trained for the same few minutes."""

import re
import zlib

from llmcli.data.text.corpus import Corpus

NAME = "smollm2"
DOWNLOAD_MEGABYTES = 270  # 134.5 million weights in bfloat16, and the tokenizer
FUNCTION_WORDS = re.compile(
    r"(?:the|of|to|that|was|it|his|he|you|be|which|at|by|had|are|but|they|and|with|this|she|what|there|would|"
    r"not|from)"
)
SYMBOLS = re.compile(r"[][(){}<>=+*/\\|&$@#_]")
SAMPLE_BYTES = 1 << 16
MIN_WORDS = 200
# share of function words: 16 to 27% in English novels, plays and manuals, at most 5% in other languages
MIN_ENGLISH = 0.1
# symbols per word: at most 0.16 in prose, more in source code (whose comments may have many function words)
MAX_SYMBOLS = 0.2
# bits per byte of zlib: 2.8 to 3.5 for prose, fewer for repetitive text, which a new model predicts well
MIN_COMPRESSED_BITS = 2.5


def is_english_prose(corpus: Corpus) -> bool:
    """Return whether a text is English prose."""
    sample = corpus.sample(SAMPLE_BYTES).utf8()
    text = sample.decode("utf-8", "ignore")
    is_long = text.count(" ") >= MIN_WORDS
    is_varied = 8 * len(zlib.compress(sample)) >= MIN_COMPRESSED_BITS * len(sample)
    is_code = len(SYMBOLS.findall(text)) > MAX_SYMBOLS * len(text.split())
    return is_long and is_varied and not is_code and english_share(text) >= MIN_ENGLISH


def english_share(text: str) -> float:
    """Return the share of FUNCTION_WORDS among the words of a text.

    >>> english_share("It was 5_000 m, n'est-ce pas, Anna?")
    0.25
    """
    words = re.findall(r"[^\W\d_]+", text.lower())
    return sum(bool(FUNCTION_WORDS.fullmatch(word)) for word in words) / max(1, len(words))
