"""The data with which a page trains a model: the recipe, and the parts that all model files share."""

import json
import sys
from importlib.resources import files

from llmcli.config import MIN_VOCAB_SIZE, ModelConfig, TrainConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.huggingface.config import dump_config
from llmcli.formats.metadata import Json
from llmcli.pages.live_text import tokenizer_data
from llmcli.training.planning import recipe
from llmcli.version import __version__

# in pages/training/
TRAINING_SCRIPTS = ("products", "network", "optimizer", "corpus", "saved_file", "trainer")
RECIPE = (  # constants of recipe.py
    "HELD_OUT MAX_EPOCHS SHORT_CONTEXT LENGTH_WARMUP WARMUP INITIAL_RATE DECAY FINAL_RATE MOMENTUM "
    "MOMENTUM_RISE MOMENTUM_WARMUP ADAMW_BETAS ADAMW_EPSILON BPE_DROPOUT_UNTIL SEARCH_MAX_BYTES"
)
RATES = ("DROPOUT", "FEW_WORDS_DROPOUT", "BPE_DROPOUT")  # tables of recipe.py, by the number of epochs
EXAMPLES = ("english", "japanese", "questions")


def training_data() -> Json:
    """Collect the data that the scripts in pages/training/ read as `templates`."""
    config = ModelConfig(MIN_VOCAB_SIZE, 32, 96, 1, 1, 1, 32, recipe.SHORT_CONTEXT)
    tokenizers = {"bpe": Tokenizer.train_bpe([], MIN_VOCAB_SIZE), "char": Tokenizer.train_char([])}
    return {
        "recipe": {
            **{name.lower(): getattr(recipe, name) for name in RECIPE.split()},
            "rates": recipe.learning_rates("muon", config.hidden_size, tied=False),
            "batch_tokens": recipe.CPU_BATCH_TOKENS[0],
            "weight_decay": TrainConfig.weight_decay,
            "polar_express": recipe.polar_coefficients(),
            # JSON has no infinity
            **{
                name.lower(): [(min(limit, sys.maxsize), rate) for limit, rate in getattr(recipe, name)]
                for name in RATES
            },
            "rope_theta": config.rope_theta,
            "rms_norm_eps": config.rms_norm_eps,
        },
        "tokenizers": {
            kind: {
                "data": tokenizer_data(tokenizer, tokenizer.to_json()),
                "document": json.loads(tokenizer.to_json()),
            }
            for kind, tokenizer in tokenizers.items()
        },
        "config_json": json.loads(dump_config(config, "float32")),
        "tokenizer_config_json": json.loads(tokenizers["bpe"].to_config_json(recipe.SHORT_CONTEXT)),
        "version": __version__,
    }


def example_texts() -> dict[str, str]:
    """Return the texts to begin with, by name."""
    folder = files("llmcli.pages") / "training" / "examples"
    return {name: (folder / f"{name}.txt").read_text("utf-8") for name in EXAMPLES}
