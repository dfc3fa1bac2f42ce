"""Each detail changes what it names and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from benchmarks.unrecorded_details import DETAILS

from metaadamw_bench.models.language_model import LanguageModel

WORDS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(20, length=6, width=32)


def changed(before, after):
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    return {name for (name, old), new in pairs if not torch.equal(old, new)}


def logits(model, *, training):
    torch.manual_seed(1)
    return model.train(training)(WORDS)


def test_attention_begins_as_small_as_all_else(model):
    plain = copy.deepcopy(model)
    DETAILS["attention-weights"](model)
    names = {f"transformer.layers.{layer}.self_attn.in_proj_weight" for layer in range(2)}
    assert changed(plain, model) == names
    for name in names:
        torch.testing.assert_close(model.get_parameter(name).std(), torch.tensor(0.02))


def test_embeddings_drop_out_in_training_only(model):
    plain = copy.deepcopy(model)
    DETAILS["embedding-dropout"](model)
    assert not changed(plain, model)
    assert torch.equal(logits(model, training=False), logits(plain, training=False))
    assert not torch.equal(logits(model, training=True), logits(plain, training=True))


def test_gelu_also_on_the_fast_path(model):
    plain = copy.deepcopy(model)
    DETAILS["gelu"](model)
    assert not changed(plain, model)
    slow = logits(model, training=False)
    assert not torch.equal(slow, logits(plain, training=False))
    with torch.no_grad():
        torch.testing.assert_close(logits(model, training=False), slow)
