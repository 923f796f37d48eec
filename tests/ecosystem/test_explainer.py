"""Attention and the logit lens are those of transformers, for every kind of model."""

import numpy as np

from llmcli.analysis.explain import explain
from llmcli.formats import loading
from llmcli.formats.loading import open_tokenizer
from llmcli.models.numpy_runtime import NumpyRuntime


def test_attention_and_the_lens_are_those_of_transformers(reference) -> None:
    import torch
    import transformers

    checkpoint = loading.load(reference.directory)
    found = explain(
        NumpyRuntime(checkpoint),
        open_tokenizer(checkpoint),
        "def f(x): return the world",
        literal=True,
        every_position=True,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        reference.directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        theirs = model(torch.tensor([found.ids]), output_attentions=True, output_hidden_states=True)
        attention = torch.stack(theirs.attentions)[:, 0].numpy()
        streams = [model.lm_head(model.model.norm(states[0])) for states in theirs.hidden_states[:-1]]
        chances = torch.stack([*streams, theirs.logits[0]]).softmax(-1).numpy()
    np.testing.assert_allclose(found.attention, attention, atol=1e-4)
    wanted = -np.sort(-chances, axis=-1)[..., : found.logit_lens.ids.shape[-1]]
    np.testing.assert_allclose(found.logit_lens.probabilities, wanted, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(chances, found.logit_lens.ids, -1), wanted, atol=1e-4)
