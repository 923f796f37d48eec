"""Trainable rows of appended tokens: the same model as with the rows in its matrices, and nothing else is trained.
Frozen matrices: cast once, with the results of casting them in every step."""

import numpy as np
import torch

from llmcli.models.torch.transformer import LanguageModel
from tests.conftest import random_checkpoint
from tests.models.decoders import SHAPES

FIRST, COUNT = 297, 2


def models(shape: str) -> tuple[LanguageModel, LanguageModel]:
    """(a model with LoRA adapters and rows of its own for two tokens, the same model without either)"""
    weights = random_checkpoint(SHAPES[shape]).tensors
    model, plain = LanguageModel(SHAPES[shape]), LanguageModel(SHAPES[shape])
    model.add_adapters(2, torch.Generator().manual_seed(0))
    model.train_token_rows(FIRST, COUNT)
    model.load_arrays(weights)
    plain.load_arrays(weights)
    return model, plain


def test_logits_weights_and_gradients_are_those_of_the_rows_in_the_whole_matrices() -> None:
    for shape in ["tied", "untied"]:
        model, plain = models(shape)
        ids = torch.tensor([[1, FIRST, 5, FIRST + 1, 299, 2, FIRST]])
        with torch.no_grad():
            assert torch.allclose(model(ids), plain(ids), atol=1e-5)
        for name, array in plain.to_arrays().items():
            assert np.array_equal(model.to_arrays()[name], array), name
        for each in (model, plain):
            each.loss(ids).backward()
        rows = slice(FIRST, FIRST + COUNT)
        assert model.token_rows is not None, shape
        embedding = plain.model.embed_tokens.weight.grad
        assert embedding is not None and model.token_rows.embedding.grad is not None, shape
        assert torch.allclose(model.token_rows.embedding.grad, embedding[rows], atol=1e-6), shape
        if model.token_rows.head is not None:
            assert model.token_rows.head.grad is not None and plain.lm_head.weight.grad is not None
            assert torch.allclose(model.token_rows.head.grad, plain.lm_head.weight.grad[rows], atol=1e-6)
        assert model.model.embed_tokens.weight.grad is None, shape


def test_only_these_rows_and_the_adapters_are_trained_and_stored() -> None:
    model, plain = models("untied")
    rows = {name for name in model.trainable_arrays() if "adapter" not in name}
    assert rows == {"token_rows.embedding", "token_rows.head"}
    assert model.token_rows is not None
    with torch.no_grad():
        model.token_rows.embedding.add_(1.0)
    changed = model.to_arrays()["model.embed_tokens.weight"] != plain.to_arrays()["model.embed_tokens.weight"]
    assert np.flatnonzero(changed.any(axis=1)).tolist() == [FIRST, FIRST + 1]
    again, _ = models("untied")
    again.load_trainable(model.trainable_arrays())
    for name, array in model.to_arrays().items():
        assert np.array_equal(again.to_arrays()[name], array)


def test_frozen_matrices_that_are_folded_once_train_the_same_adapters_to_the_bit() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 6, 7, 9, 2]])
    for shape, config in SHAPES.items():
        weights, trained = random_checkpoint(config).tensors, []
        for folds in (False, True):
            model = LanguageModel(config, dtype=torch.bfloat16)
            model.add_adapters(2, torch.Generator().manual_seed(0))
            model.load_arrays(weights)
            if folds:
                model.fold_frozen(weights)
            loss = model.train().loss(ids)
            torch.autograd.backward(loss)
            grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
            trained.append((loss.detach(), grads, model.to_arrays()))
        (loss, grads, arrays), (folded_loss, folded_grads, folded_arrays) = trained
        assert torch.equal(loss, folded_loss), shape
        assert grads and all(map(torch.equal, grads, folded_grads)), shape
        assert all(np.array_equal(arrays[name], folded_arrays[name]) for name in arrays), shape
