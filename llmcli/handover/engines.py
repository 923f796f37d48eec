"""The README and the files for other training engines, from the templates in this package."""

from collections.abc import Sequence
from importlib.resources import files as package_files
from string import Template

from llmcli.config import ModelConfig, as_record
from llmcli.formats.metadata import Json
from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import MICRO_BATCH_VALUES
from llmcli.version import __version__

COMMANDS = {  # file -> how to use it
    "trl_sft.py": "`python trl_sft.py`",
    "nemo_automodel.yaml": "`automodel nemo_automodel.yaml --nproc-per-node 8`",
    "litgpt.yaml": "`litgpt convert_to_litgpt model --model_name Qwen3-0.6B`, then\n"
    "  `PYTHONPATH=. litgpt pretrain --config litgpt.yaml`",
    "torchtitan_config.py": "`PYTHONPATH=. torchrun --nproc-per-node 8 -m torchtitan.train "
    "--module torchtitan_config\n"
    "  --config handover`",
    "skypilot.yaml": "`sky launch -c handover skypilot.yaml` rents two machines with eight GPUs each, "
    "for torchtitan",
}
OTHERS = {"litgpt.yaml": ("litgpt_data.py",)}  # file -> other files that it needs
NAMES = {"README.md", *COMMANDS, *(name for names in OTHERS.values() for name in names)}
MODEL_TYPE = "qwen3"
# files that describe the shape of the model
FOR_MODEL_TYPE = (
    "litgpt.yaml",
    "torchtitan_config.py",
    "skypilot.yaml",
)
LEARNING_RATE = "3.0e-4"  # for AdamW [chosen]
FINAL_LEARNING_RATE = "3.0e-5"  # [chosen]
WARMUP = 0.05  # share of the steps; the optimizer state is new [chosen]
MIN_STEPS = 10
GPUS = 16  # GPUs in skypilot.yaml; each must get a part of every batch


def skipped(config: ModelConfig) -> list[str]:
    """List the files that cannot be written for a model."""
    is_plain = config.rope_scaling is None and not config.no_rope_layers and config.hidden_act == "silu"
    return [] if config.model_type == MODEL_TYPE and is_plain else list(FOR_MODEL_TYPE)


def files(
    config: ModelConfig, manifest: Json, included: Sequence[str], not_included: Sequence[str]
) -> dict[str, str]:
    """Return the files by name; `manifest` is the content of handover.json."""
    names = [name for name in COMMANDS if name not in skipped(config)]
    values = _values(config, manifest) | {
        "included": "\n".join(f"- {line}" for line in included),
        "not_included": "\n".join(f"- {line}" for line in not_included),
        "commands": "\n".join(f"- {name}: {COMMANDS[name]}" for name in names),
    }
    names += [other for name in names for other in OTHERS.get(name, ())]
    folder = package_files("llmcli.handover") / "templates"
    names = ["README.md", *names]
    return {
        name: Template((folder / f"{name}.template").read_text("utf-8")).substitute(values) for name in names
    }


def _values(config: ModelConfig, manifest: Json) -> dict[str, object]:
    """Return the values for the templates. Batches grow with the text, as in GPU training with llmcli."""
    tokens = manifest["tokens"]
    context = config.max_position_embeddings
    model = manifest["model"]
    smallest, largest = recipe.GPU_BATCH_TOKENS
    batch = max(
        GPUS,
        _power_of_two(min(max(tokens["train"] // recipe.GPU_BATCH_DIVISOR, smallest), largest) // context),
    )
    values = config.num_hidden_layers * config.hidden_size * context  # activations of a window
    micro_batch = min(batch // GPUS, _power_of_two(MICRO_BATCH_VALUES["cuda"] // values))
    steps = max(MIN_STEPS, tokens["train"] // (batch * context))
    times = round(steps * batch * context / tokens["train"])
    is_wide = manifest["dtype"] != "<u2"
    return as_record(config) | {
        "origin": model["from"],
        "weights": model["weights"],
        "parameters": f"{model['parameters']:,}",
        "version": __version__,
        "norm_eps": _number(config.rms_norm_eps),
        "rope_theta": round(config.rope_theta),
        "window": f"{context:,}",
        "tied": str(config.tie_word_embeddings).lower(),
        "tied_python": config.tie_word_embeddings,
        "dtype": manifest["dtype"],
        "train_count": f"{tokens['train']:,}",
        "val_count": f"{tokens['val']:,}",
        "val_windows": max(1, (tokens["val"] - 1) // context),
        "batch": batch,
        "micro_batch": micro_batch,
        "accumulation": batch // micro_batch,
        "steps": steps,
        "max_tokens": steps * batch * context,
        "times": "about once" if times <= 1 else f"about {times:,} times",
        "nanogpt_dtype": ". Replace np.uint16 by np.uint32 in its train.py" if is_wide else "",
        "warmup": max(1, round(WARMUP * steps)),
        "lr": LEARNING_RATE,
        "min_lr": FINAL_LEARNING_RATE,
    }


def _number(value: float) -> str:
    """Write a number so that YAML 1.1 does not read it as a string: 1.0e-06, not 1e-06."""
    text = repr(value)
    return text if "." in text else text.replace("e", ".0e")


def _power_of_two(limit: int) -> int:
    """Return the largest power of two up to a limit; 1 if there is none."""
    return 1 << max(0, limit.bit_length() - 1)
