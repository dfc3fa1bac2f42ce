"""A small GPT-2 or BERT in the Hugging Face Trainer, on Python's own documentation.

    pip install '.[transformers]'
    python examples/huggingface_trainer.py runs/gpt2
    python examples/huggingface_trainer.py runs/bert --architecture bert --mode lookahead

Interrupt it and start it again with the same command: it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from metaadamw import Hypergradient, LookAhead
from metaadamw.integrations.transformers import MetaAdamWCallback, fine_grained

CONTEXT = 64
MASK = 128  # tokens are ASCII characters, 0 to 127; BERT has one more
Examples = list[dict[str, Tensor]]


def _learning(mode: str) -> LookAhead | Hypergradient:
    """Look-ahead calls for meta-updates; "online" learns inside ``step()``."""
    if mode == "lookahead":
        return LookAhead(every=5, optimizer="adam")
    return Hypergradient()


def build_model(architecture: str) -> PreTrainedModel:
    """About 30,000 random weights."""
    if architecture == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
        return GPT2LMHeadModel(GPT2Config(vocab_size=128, n_positions=CONTEXT, **shape))
    return BertForMaskedLM(
        BertConfig(
            vocab_size=MASK + 1,
            max_position_embeddings=CONTEXT,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )


def load(architecture: str) -> tuple[Examples, Examples, Examples]:
    """Train, meta-validation and validation examples; BERT is to find 15 % masked characters."""
    text = "\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor(list(text.encode("ascii", "replace")))
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    masked = torch.rand(windows.shape, generator=torch.Generator().manual_seed(0)) < 0.15
    examples = [
        {"input_ids": window, "labels": window}
        if architecture == "gpt2"
        else {"input_ids": window.where(~hidden, MASK), "labels": window.where(hidden, -100)}
        for window, hidden in zip(windows, masked, strict=True)
    ]
    return examples[:-600], examples[-600:-300], examples[-300:]


def build_trainer(output: Path, architecture: str, mode: str, **arguments: Any) -> Trainer:
    """A stock Trainer; what is not stock about it is marked."""
    set_seed(0)
    model = build_model(architecture)
    train, meta_validation, validation = load(architecture)
    trainer = Trainer(
        model,
        TrainingArguments(
            str(output),
            **{
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 2,
                "weight_decay": 0.01,
                "lr_scheduler_type": "cosine",
                "report_to": [],
                **arguments,
            },
        ),
        train_dataset=train,
        eval_dataset=validation,
        optimizer_cls_and_kwargs=fine_grained(  # here
            model,
            lr=1e-2,
            modulator="attention",
            learning=_learning(mode),
        ),
    )
    if mode == "lookahead":  # and here
        trainer.add_callback(MetaAdamWCallback(trainer, eval_dataset=meta_validation))
    return trainer


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--architecture", choices=("gpt2", "bert"), default="gpt2")
    parser.add_argument("--mode", choices=("online", "lookahead"), default="online")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)  # one process may be ahead of another
    trainer = build_trainer(
        options.output,
        options.architecture,
        options.mode,
        max_steps=options.steps,
        save_steps=max(options.steps // 4, 1),
        logging_steps=max(options.steps // 10, 1),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(options.output))
    print(f"validation loss {trainer.evaluate()['eval_loss']:.3f}")
    for name, value in trainer.optimizer.optimizer.metrics().items():
        print(f"{name:45} {float(value):8.4f}")


if __name__ == "__main__":
    main()
