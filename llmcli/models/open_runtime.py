"""The choice of a runtime for a model: numpy on the CPU, onnxruntime for quantized weights or speed, torch
elsewhere.

A backend is imported only when it is chosen, so the CPU never waits for torch.
"""

import contextlib

from llmcli.errors import LLMError, OnNote
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.ensemble_file import Ensemble
from llmcli.models.ngram_runtime import NgramRuntime, with_ngram_cache
from llmcli.models.runtime import Runtime

FAST_BYTES = 2 << 30  # largest float32 weights that are kept in memory twice for speed
WORTH_FAST = 20_000_000  # parameters; smaller models are fast enough without onnxruntime


def open_runtime(
    model: Checkpoint | Ensemble,
    device: str = "cpu",
    quantize: str | None = None,
    on_note: OnNote = lambda note: None,
    *,
    fast: bool = False,
    cache: bool = True,
) -> Runtime:
    """Open a runtime for a model, with its n-gram cache if it has one and `cache` is True. `device` is "cpu",
    "cuda", "mps" or "auto"; `quantize` is "int8", "int4", or None for the stored weights. With `fast`,
    float32 weights on the CPU run in onnxruntime, if installed: up to twice as fast, with twice the memory.
    Raises LLMError if the device or backend is missing."""
    weights = [record.ngram_cache if cache else None for record in model.records]
    if isinstance(model, Ensemble):
        from llmcli.models.ensemble import EnsembleRuntime

        ensemble = EnsembleRuntime(
            [_open_network(m, device, quantize, on_note, fast=fast) for m in model.experts]
        )
        runtime: Runtime = NgramRuntime(ensemble, weights) if any(weights) else ensemble
    else:
        network = _open_network(model, device, quantize, on_note, fast=fast)
        runtime = with_ngram_cache(network, weights[0])
    model.shared.close()  # the weights are in memory
    return runtime


def _open_network(
    checkpoint: Checkpoint, device: str, quantize: str | None, on_note: OnNote, *, fast: bool
) -> Runtime:
    if device != "cpu":
        from llmcli.models.torch.devices import check_dtype, pick_device
        from llmcli.models.torch.runtime import TorchRuntime

        device = pick_device(device)
        check_dtype("float32", device)
        return TorchRuntime(checkpoint, device)
    from llmcli.models.numpy_runtime import NumpyRuntime

    scheme = quantize or checkpoint.quantization
    if not scheme and not (fast and 4 * checkpoint.config.parameters <= FAST_BYTES):
        return NumpyRuntime(checkpoint)
    from llmcli.models.onnx import runtime as onnx_runtime

    unsupported = onnx_runtime.unsupported(checkpoint.config)
    # stored quantized weights also run without onnxruntime
    if not unsupported and (quantize or onnx_runtime.is_installed()):
        try:
            return onnx_runtime.OnnxRuntime(checkpoint, scheme)
        except LLMError as error:  # for example, onnxruntime was built for another system
            if quantize:
                raise
            on_note(
                f"onnxruntime does not work here ({error.__cause__ or error}); running more slowly without it"
            )
    if not scheme:
        return NumpyRuntime(checkpoint)
    reason = (
        f"onnxruntime does not support {unsupported}"
        if unsupported
        else 'pip install "llmcli[fast]" adds one'
    )
    on_note(f"no accelerated {scheme} backend here: {reason}; running at the speed of float32")
    return NumpyRuntime(checkpoint.with_quantized_values(scheme))


def expert_names(model: Checkpoint | Ensemble) -> list[str]:
    """Return the names of an ensemble's models, or the numbers of a sparse model's experts; [] for other
    models."""
    return (
        list(model.names)
        if isinstance(model, Ensemble)
        else [str(i) for i in range(model.config.num_experts)]
    )


def open_trained(checkpoint: Checkpoint, device: str) -> Runtime:
    """Open a model from its training run: on the GPU if it is large and fits, otherwise on the CPU."""
    if device != "cpu" and checkpoint.parameters >= WORTH_FAST:
        from llmcli.models.torch.runtime import TorchRuntime

        with contextlib.suppress(MemoryError):
            return TorchRuntime(checkpoint, device)
    from llmcli.models.numpy_runtime import NumpyRuntime

    return NumpyRuntime(checkpoint)
