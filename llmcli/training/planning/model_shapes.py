"""Shapes of new models: candidates of increasing size, and their configs."""

from llmcli.config import ModelConfig
from llmcli.errors import usage
from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import CorpusSize
from llmcli.training.planning.plan import PlanRequest
from llmcli.training.planning.task import Task

# layers, width
SIZES = {
    "100m": (10, 640),
    "350m": (22, 1024),
    "1b": (18, 2048),
    "3b": (24, 3072),
    "7b": (32, 4096),
}


def candidates(task: Task, data: CorpusSize) -> list[ModelConfig]:
    """List the models that the amount of data supports, smallest first; only one if the shape is fixed."""
    if task.base:
        return [task.base]
    request = task.request
    largest = recipe.MAX_SIZE_FACTOR * data.tokens**recipe.MAX_SIZE_EXPONENT
    # 12 * width**2: about the parameters in a layer, a third of them in the attention and the rest in the
    # SwiGLU
    shapes = [(layers, width) for layers, width in recipe.SHAPES if 12 * layers * width**2 <= largest]
    shapes = shapes or [recipe.SHAPES[0]]
    distinct = dict.fromkeys((request.layers or layers, request.width or width) for layers, width in shapes)
    return [
        model_config(
            request, *shape, task.context.value, task.vocab_size, task.eos_id, induction=task.induction
        )
        for shape in distinct
    ]


def model_config(
    request: PlanRequest,
    layers: int,
    width: int,
    context: int,
    vocab_size: int,
    eos_id: int,
    *,
    induction: bool,
) -> ModelConfig:
    """Create the config of a shape. Raises LLMError if the user's numbers are inconsistent."""
    heads, head_dim = (
        (request.heads, width // request.heads) if request.heads else _heads(width, request.device)
    )
    kv_heads = request.kv_heads or heads
    if request.heads and width % heads:
        raise usage(f"{heads} heads do not divide width {width}; set `heads` to a divisor of {width}")
    if heads % kv_heads:
        raise usage(
            f"{kv_heads} key-value heads do not divide {heads} heads; set `kv_heads` to a divisor of `heads`"
        )
    if head_dim % 2:
        raise usage(
            f"the head size must be even for rotary embeddings: `width` / `heads`, found {width} / {heads}"
        )
    active = min(request.active or recipe.ACTIVE_EXPERTS, request.experts or 1)
    embedding_outweighs_layers = vocab_size * width > 12 * layers * width**2
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        # 8/3: gives the three matrices of a SwiGLU as many parameters as the two matrices of an MLP of four
        # times the width; the active experts share them
        intermediate_size=max(32, round(width * 8 / 3 / active / 32) * 32),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=context,
        rope_theta=recipe.INDUCTION_ROPE_THETA if induction else ModelConfig.rope_theta,
        tie_word_embeddings=embedding_outweighs_layers if request.tie is None else request.tie,
        eos_token_id=eos_id,
        model_type="qwen3_moe" if request.experts else "qwen3",
        num_experts=request.experts or 0,
        num_experts_per_tok=active if request.experts else 0,
    )


def _heads(width: int, device: str) -> tuple[int, int]:
    """Return the number of heads and their size, which must be even. On a CPU, wide models have heads for
    half of the hidden size."""
    size = min(recipe.HEAD_DIM, max(2, width // 4 * 2))
    share = recipe.CPU_HEADS_SHARE if device == "cpu" else 1.0
    return max(recipe.MIN_HEADS, round(share * width / size)), size
