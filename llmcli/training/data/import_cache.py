"""An n-gram cache for a model that was not trained here: its weights, fitted on a text that the user names."""

from llmcli.config import EVALUATION_CONTEXT
from llmcli.data.text.corpus import Corpus
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.tokens import tokenize
from llmcli.errors import LLMError
from llmcli.formats.cache_weights import CacheWeights
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.cache_fit import MIN_TOKENS, ValidationText
from llmcli.training.data.validation_slice import reserve_tokens

FIT_TOKENS = 16_384  # that are scored, at most
FIT_SHARE = 0.5  # of the text, at most: the rest stands before them, and can be copied
MAX_BYTES = 20_000_000  # of text that is read


def fit_cache(model: Checkpoint, tokenizer: Tokenizer, text: Corpus) -> CacheWeights | None:
    """The weights of a cache for a model, fitted on windows that are spread over the text; None where a cache does not
    help it there. Raises LLMError if the text is too short."""
    tokens = tokenize(text.sample(MAX_BYTES).texts(), tokenizer)
    count = min(FIT_TOKENS, int(FIT_SHARE * len(tokens)))
    _, windows = reserve_tokens(tokens, count, min(EVALUATION_CONTEXT, model.config.max_position_embeddings))
    sample = ValidationText(tokens, windows, tokenizer.eos_id)
    if count < MIN_TOKENS:
        raise LLMError(
            f"--fit-cache: {len(tokens):,} tokens of text are too few; give at least {round(MIN_TOKENS / FIT_SHARE):,}"
        )
    network = LanguageModel(model.config)
    network.load_arrays(model.tensors)
    return sample.fit_cache(network)
