"""A training step on a device other than the CPU. Its stand-in is torch's meta device, whose tensors have a shape, a
type and a device, but no values: an operation on tensors of two devices fails there as on a GPU, and so does reading a
value, for which a GPU would have to be waited for.
"""

from dataclasses import replace

import numpy as np
import torch

from llmcli.config import ModelConfig, TrainConfig
from llmcli.training.step.initialization import new_model
from llmcli.training.step.training_step import accumulate_gradients

CONFIG = ModelConfig(300, 64, 160, 2, 4, 2, 16, 32)


def settings(**changes: object) -> TrainConfig:
    made = TrainConfig(**{"steps": 1, "context": 32, "batch_size": 2, "dtype": "bfloat16", **changes})  # type: ignore[arg-type]
    object.__setattr__(made, "device", "meta")  # no device that a user can name
    return made


def test_no_part_of_a_step_mixes_or_waits_for_devices() -> None:
    for conversations in [False, True]:
        for lora in [False, True]:
            for model_type in ["qwen3", "qwen2", "llama"]:
                chosen = settings(recipe="lora", lora_rank=4) if lora else settings()
                model = new_model(replace(CONFIG, model_type=model_type), chosen, range(298, 300))
                model.train()
                ids = torch.zeros(2, 33, dtype=torch.int64, device="meta")
                learned = torch.from_numpy(np.arange(66).reshape(2, 33) % 3 == 0) if conversations else None
                loss = accumulate_gradients(model, ids, 1, learned)
                assert (loss.device.type, loss.dtype) == ("meta", torch.float32)
                trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
                assert trained and all(one.grad is not None and one.grad.device.type == "meta" for one in trained)
