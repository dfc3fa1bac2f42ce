"""What the paper does not say about its WikiText-2 model, and what that is worth.

AdamW in the authors' protocol at full size, seed 0, with details of the model changed:

    python -m benchmarks.unrecorded_details embedding-dropout gelu --epochs 5 --data-dir DATA

runs for half an hour on one core, goes on where it was stopped, and adds the validation
perplexities of its epochs to benchmarks/results/unrecorded_details.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaadamw_bench.arms import get_arm
from metaadamw_bench.config import RunRequest
from metaadamw_bench.models.language_model import LanguageModel
from metaadamw_bench.runs import RunOptions, execute, prepare

RESULTS = Path(__file__).parent / "results" / "unrecorded_details.json"
_DROPOUT = 0.2
_STANDARD_DEVIATION = 0.02


def _layers(model: LanguageModel) -> list[nn.TransformerEncoderLayer]:
    return cast("list[nn.TransformerEncoderLayer]", list(model.transformer.layers))


def attention_weights(model: LanguageModel) -> None:
    """Queries, keys and values begin as small as all else, not as torch's attention begins."""
    for layer in _layers(model):
        weight = layer.self_attn.in_proj_weight
        with torch.no_grad():  # scaled, not drawn: all other weights stay as they are
            weight.mul_(_STANDARD_DEVIATION / weight.std())


def embedding_dropout(model: LanguageModel) -> None:
    """Dropout on the sum of the embeddings too."""

    def dropped(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return F.dropout(inputs[0], _DROPOUT, module.training), *inputs[1:]

    model.transformer.register_forward_pre_hook(dropped)


def gelu(model: LanguageModel) -> None:
    """The activation of GPT in place of ReLU."""
    for layer in _layers(model):
        layer.activation = F.gelu
        layer.activation_relu_or_gelu = 2  # what the layer's own fast path goes by


DETAILS: dict[str, Callable[[LanguageModel], None]] = {
    "attention-weights": attention_weights,
    "embedding-dropout": embedding_dropout,
    "gelu": gelu,
}


def run(details: Sequence[str], epochs: int, data_dir: Path | None, runs: Path) -> list[float]:
    """Validation perplexity after each epoch with these details."""
    request = RunRequest(
        task="wikitext2", arm="adamw", protocol="paper", size="full", epochs=epochs
    )
    task = prepare(request, data_dir)

    def build() -> nn.Module:
        model = task.build_model()
        for detail in details:
            DETAILS[detail](cast(LanguageModel, model))
        return model

    directory = runs / "+".join(details) / f"epochs{epochs}"
    execute(
        request,
        directory,
        RunOptions(data_dir=data_dir),
        replace(task, build_model=build),
        # A name of its own, or a report would take this for AdamW on the model of the bench.
        replace(get_arm("adamw"), name="+".join(["adamw", *details])),
    )
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [entry["metric"] for entry in entries if entry.get("split") == "validation"]


def main() -> None:
    """Some details, from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("details", nargs="+", choices=sorted(DETAILS), metavar="DETAIL")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/unrecorded-details"))
    given = parser.parse_args()
    details = sorted(set(given.details))
    perplexities = run(details, given.epochs, given.data_dir, given.runs)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found[" + ".join(details)] = [round(value, 2) for value in perplexities]
    RESULTS.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    print(*details, perplexities)


if __name__ == "__main__":
    main()
