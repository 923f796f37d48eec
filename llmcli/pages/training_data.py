"""The data with which a page trains a model: the recipe, and the parts that all model files share."""

import json
import math
from collections.abc import Sequence
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
EXAMPLES = ("english", "japanese", "questions")


def training_data() -> Json:
    """Collect the data that the scripts in pages/training/ read as `templates`."""
    config = ModelConfig(MIN_VOCAB_SIZE, 32, 96, 1, 1, 1, 32, recipe.SHORT_CONTEXT)
    tokenizers = {"bpe": Tokenizer.train_bpe([], MIN_VOCAB_SIZE), "char": Tokenizer.train_char([])}
    return {
        "recipe": {
            "rates": recipe.learning_rates("muon", config.hidden_size, tied=False),
            "held_out": recipe.HELD_OUT,
            "max_epochs": recipe.MAX_EPOCHS,
            "context": recipe.SHORT_CONTEXT,
            "batch_tokens": recipe.CPU_BATCH_TOKENS[0],
            "length_warmup": recipe.LENGTH_WARMUP,
            "warmup": recipe.WARMUP,
            "initial_rate": recipe.INITIAL_RATE,
            "decay": recipe.DECAY,
            "final_rate": recipe.FINAL_RATE,
            "momentum": recipe.MOMENTUM,
            "momentum_rise": recipe.MOMENTUM_RISE,
            "momentum_warmup": recipe.MOMENTUM_WARMUP,
            "weight_decay": TrainConfig.weight_decay,
            "betas": recipe.ADAMW_BETAS,
            "epsilon": recipe.ADAMW_EPSILON,
            "polar_express": recipe.polar_coefficients(),
            "dropout": _table(recipe.DROPOUT),
            "bpe_dropout": _table(recipe.BPE_DROPOUT),
            "bpe_dropout_until": recipe.BPE_DROPOUT_UNTIL,
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


def _table(rows: Sequence[tuple[float, float]]) -> list[tuple[float | None, float]]:
    """Return the rows with None for infinity, which JSON does not have."""
    return [(None if math.isinf(limit) else limit, rate) for limit, rate in rows]
