"""Choice of the device that torch runs on."""

from llmcli.errors import LLMError


def pick_device(name: str) -> str:
    """Resolve "auto" to a GPU if torch sees one, else to the CPU. Raises LLMError when a named device is missing."""
    import torch  # slow to import, and not needed on the CPU

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next((device for device in ("cuda", "mps") if available[device]), "cpu")
    if not available[name]:
        raise LLMError(f"torch {torch.__version__} finds no {name} device here; use --device cpu or auto")
    return name
