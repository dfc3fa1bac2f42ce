"""The port of the authors' code is the algorithm: it agrees with MetaAdamW set to run as theirs."""

from __future__ import annotations

import pytest
import torch
from benchmarks.authors_port import AuthorsMetaAdamW
from benchmarks.models import cross_entropy, token_batch

from metaadamw import MetaAdamW, fine_grained_groups, paper_preset
from metaadamw_bench.models.language_model import LanguageModel


def pair(task):
    """The same small model under both optimizers, with the same modulator."""
    modulator, meta = paper_preset(task, as_run=True).values()
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(LanguageModel(40, 8, 16, dropout=0.0))
    ours = MetaAdamW(
        fine_grained_groups(models[0], kinds="paper"), lr=5e-4, modulator=modulator, learning=meta
    )
    theirs = AuthorsMetaAdamW(fine_grained_groups(models[1], kinds="paper"), modulator, meta)
    with torch.no_grad():
        for weights, layer in zip(
            zip(*(t.unbind(0) for t in ours.modulator.encoder_tensors()), strict=True),
            theirs.encoder.layers,
            strict=True,
        ):
            for target, source in zip(in_order(layer), weights, strict=True):
                target.copy_(source)
        theirs.output.weight.copy_(ours.modulator.output_weight)
        theirs.output.bias.copy_(ours.modulator.output_bias)
    return models, ours, theirs


def in_order(layer):
    """A layer's tensors in the order of ``Modulator.encoder_tensors``."""
    attention = layer.self_attn
    return [
        *(attention.in_proj_weight, attention.in_proj_bias),
        *(attention.out_proj.weight, attention.out_proj.bias),
        *(layer.norm1.weight, layer.norm1.bias, layer.norm2.weight, layer.norm2.bias),
        *(layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias),
    ]


def train(models, optimizers, steps):
    """Steps on one gradient: that of a key's bias is rounding error, which Adam would blow up."""
    for seed in range(steps):
        torch.manual_seed(seed)
        optimizers[0].zero_grad()
        cross_entropy(models[0], token_batch(40, 2, 8)).backward()
        for param, twin in zip(*(model.parameters() for model in models), strict=True):
            twin.grad = param.grad
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("task", ["wikitext2", "imdb"])
def test_step(task):
    models, ours, theirs = pair(task)
    train(models, [ours, theirs], 5)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["wikitext2", "imdb"])
def test_meta_update(task):
    models, ours, theirs = pair(task)
    train(models, [ours, theirs], 3)
    before = ours.modulator.output_weight.detach().clone()
    batch1, batch2, val_batch = (token_batch(40, 2, 8) for _ in range(3))
    update = ours.update_attention(models[0], cross_entropy, batch1, batch2, val_batch)
    total = theirs.update_attention(models[1], cross_entropy, batch1, batch2, val_batch, val_batch)
    assert total == pytest.approx(update.total, rel=1e-4)
    moved = ours.modulator.output_weight - before
    assert moved.abs().max() > 0
    torch.testing.assert_close(theirs.output.weight - before, moved, rtol=5e-2, atol=2e-7)
