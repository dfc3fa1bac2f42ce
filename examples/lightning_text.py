"""A character model in Lightning, on Python's own documentation.

    pip install '.[lightning]'
    python examples/lightning_text.py runs/online
    python examples/lightning_text.py runs/lookahead --mode lookahead

Interrupt it and start it again with the same command: it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from metaadamw import Hypergradient, LookAhead, MetaAdamW, fine_grained_groups
from metaadamw.integrations.lightning import MetaAdamWCallback

CONTEXT = 32


def _learning(mode: str) -> LookAhead | Hypergradient:
    """Look-ahead calls for meta-updates; "online" learns inside ``step()``."""
    if mode == "lookahead":
        return LookAhead(every=5, optimizer="adam")
    return Hypergradient()


class CharacterModel(LightningModule):
    """Predicts the next character; what is not stock about it is marked."""

    def __init__(self, mode: str, steps: int) -> None:
        super().__init__()
        self.mode, self.steps = mode, steps
        self.embedding = nn.Embedding(128, 16)
        self.mixing = nn.Sequential(
            nn.Linear(CONTEXT * 16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 128)
        )

    def forward(self, characters: Tensor) -> Tensor:
        """Logits of the character after each window [N, CONTEXT]."""
        logits: Tensor = self.mixing(self.embedding(characters).flatten(1))
        return logits

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy in nats."""
        characters, following = batch
        return nn.functional.cross_entropy(self(characters), following)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """As everywhere."""
        loss = self.loss(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """As everywhere."""
        self.log("validation_loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """As with AdamW, and a schedule."""
        optimizer = MetaAdamW(  # here
            fine_grained_groups(self),
            lr=3e-3,
            modulator="attention",
            learning=_learning(self.mode),
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def load() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Train, meta-validation and validation windows."""
    text = "\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor(list(text.encode("ascii", "replace")))
    windows = tokens[: len(tokens) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    train, meta_validation, validation = windows.split([len(windows) - 1000, 500, 500])
    return tuple(  # type: ignore[return-value]
        TensorDataset(part[:, :-1], part[:, -1]) for part in (train, meta_validation, validation)
    )


def train(
    output: Path,
    mode: str,
    *,
    epochs: int,
    batch_size: int = 32,
    examples: int = -1,
    **options: Any,
) -> Trainer:
    """Train, or go on training from the last checkpoint in ``output``."""
    seed_everything(0, verbose=False)
    training, meta_validation, validation = load()
    training = TensorDataset(*training[:examples])
    # An order that follows from the epoch: a resumed run sees the one of a run that never stopped.
    order = DistributedSampler(training, num_replicas=1, rank=0)
    loader = DataLoader(training, batch_size, sampler=order)
    callbacks = [ModelCheckpoint(output, save_last=True), *options.pop("callbacks", [])]
    if mode == "lookahead":  # and here
        callbacks.append(MetaAdamWCallback(val_dataset=meta_validation))
    trainer = Trainer(max_epochs=epochs, gradient_clip_val=1.0, callbacks=callbacks, **options)
    last = output / "last.ckpt"
    trainer.fit(
        CharacterModel(mode, epochs * len(loader)),
        loader,
        DataLoader(validation, 250),
        ckpt_path=last if last.exists() else None,
    )
    return trainer


def main() -> None:
    """Train, and print what the optimizer did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--mode", choices=("online", "lookahead"), default="online")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--examples", type=int, default=-1, help="train on so many only")
    options = parser.parse_args()
    trainer = train(options.output, options.mode, epochs=options.epochs, examples=options.examples)
    print(f"validation loss {trainer.callback_metrics['validation_loss']:.3f}")
    for name, value in trainer.optimizers[0].metrics().items():
        print(f"{name:45} {float(value):8.4f}")


if __name__ == "__main__":
    main()
