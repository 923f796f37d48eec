"""Attention and logit lens equal those of transformers, for every architecture."""

import numpy as np

from llmcli.analysis.explain import explain
from llmcli.formats import loading
from llmcli.formats.loading import open_tokenizer
from llmcli.generation.token_healing import Prompt
from llmcli.models.numpy_runtime import NumpyRuntime


def test_attention_and_logit_lens_equal_those_of_transformers(reference) -> None:
    import torch
    import transformers

    checkpoint = loading.load(reference.directory)
    prompt = "def f(x): return the world"
    tokenizer = open_tokenizer(checkpoint)
    explanation = explain(NumpyRuntime(checkpoint), tokenizer, Prompt.of(prompt, tokenizer, literal=True))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        reference.directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        outputs = model(torch.tensor([explanation.ids]), output_attentions=True, output_hidden_states=True)
        attention = torch.stack(outputs.attentions)[:, 0].numpy()
        names = ("norm", "ln_f", "final_layer_norm")
        norm = next(getattr(model.base_model, name) for name in names if hasattr(model.base_model, name))
        streams = [model.get_output_embeddings()(norm(states[0, -1])) for states in outputs.hidden_states[:-1]]
        probabilities = torch.stack([*streams, outputs.logits[0, -1]]).softmax(-1).numpy()
    np.testing.assert_allclose(explanation.attention, attention, atol=1e-4)
    expected = -np.sort(-probabilities, axis=-1)[..., : explanation.logit_lens.ids.shape[-1]]
    np.testing.assert_allclose(explanation.logit_lens.probabilities, expected, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(probabilities, explanation.logit_lens.ids, -1), expected, atol=1e-4)
