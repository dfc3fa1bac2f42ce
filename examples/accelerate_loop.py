"""A training loop with Accelerate: accumulation, clipping, schedule, meta-updates, exact resume.

    pip install '.[accelerate]'
    accelerate launch examples/accelerate_loop.py runs/accelerate
    accelerate launch --multi_gpu --num_processes 2 examples/accelerate_loop.py runs/two

Interrupt it and start it again with the same command: it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from pydoc_data.topics import topics

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import send_to_device, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from metaadamw import Hypergradient, LookAhead, MetaAdamW, NumberedBatches, fine_grained_groups

CONTEXT = 16


def _learning(mode: str) -> LookAhead | Hypergradient:
    """Look-ahead calls for meta-updates; "online" learns inside ``step()``."""
    if mode == "lookahead":
        return LookAhead(every=5, optimizer="adam")
    return Hypergradient()


class NextCharacter(nn.Module):
    """The next character from the sixteen before it."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width // 4)
        self.layers = nn.Sequential(
            nn.Linear(CONTEXT * width // 4, width), nn.ReLU(), nn.LayerNorm(width), nn.Dropout(0.1)
        )
        self.head = nn.Linear(width, 128)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits [N, 128] from characters [N, 16]."""
        logits: Tensor = self.head(self.layers(self.embedding(characters).flatten(1)))
        return logits


Batch = tuple[Tensor, Tensor]


def load() -> tuple[list[Batch], list[Batch]]:
    """Training and meta-validation examples: characters and the one that follows."""
    text = "\n".join(topics[name] for name in sorted(topics))
    windows = torch.tensor(list(text.encode("ascii", "replace"))).unfold(0, CONTEXT + 1, 8)
    examples = [(window[:-1], window[-1]) for window in windows]
    return examples[:4000], examples[4000:4400]


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the next character."""
    characters, following = batch
    return nn.functional.cross_entropy(model(characters), following)


class Progress:
    """How far the training has come; Accelerate saves it with the rest."""

    def __init__(self) -> None:
        self.epoch = self.batch = 0

    def state_dict(self) -> dict[str, int]:
        """What is saved."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """What was saved."""
        self.epoch, self.batch = state["epoch"], state["batch"]


def train(output: Path, mode: str, steps: int) -> list[float]:
    """Train for so many steps in all; the losses of the steps since the start of this process."""
    accelerator = Accelerator(
        gradient_accumulation_steps=2,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    set_seed(0)
    examples, held_out = load()
    # A generator of its own: otherwise every start of the loader would move the dropout masks.
    loader = DataLoader(examples, batch_size=32, shuffle=True, generator=torch.Generator())
    model = NextCharacter()
    meta_optimizer = MetaAdamW(  # Accelerate wraps it; meta-updates are called on this one
        fine_grained_groups(model),
        lr=3e-3,
        modulator="attention",
        learning=_learning(mode),
        total_steps=steps,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
        meta_optimizer, steps * accelerator.num_processes
    )
    model, optimizer, loader, scheduler = accelerator.prepare(
        model, meta_optimizer, loader, scheduler
    )
    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    more, validation = (NumberedBatches(data, 32, **ranks) for data in (examples, held_out))

    progress, latest = Progress(), output / "latest"
    accelerator.register_for_checkpointing(progress)
    if latest.exists():
        accelerator.load_state(str(output / latest.read_text()))

    losses: list[float] = []
    while meta_optimizer.steps < steps:
        loader.set_epoch(progress.epoch)
        for batch in accelerator.skip_first_batches(loader, progress.batch):
            progress.batch += 1
            with accelerator.accumulate(model):
                loss = loss_fn(model, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            losses.append(loss.item())
            if meta_optimizer.meta_update_due:
                n = meta_optimizer.steps // 5
                batches = (more[2 * n], more[2 * n + 1], validation[n])
                batches = send_to_device(batches, accelerator.device)
                meta_optimizer.update_attention(model, loss_fn, *batches)
            if meta_optimizer.steps % 6 == 0:
                name = f"step_{meta_optimizer.steps}"
                accelerator.save_state(str(output / name))
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    latest.write_text(name)  # only now is it complete
            if meta_optimizer.steps == steps:
                break
        else:
            progress.epoch, progress.batch = progress.epoch + 1, 0
    accelerator.save_state(str(output / "final"))
    if accelerator.is_main_process:
        (output / f"losses_{steps - len(losses)}.json").write_text(json.dumps(losses))
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
        for name, value in meta_optimizer.metrics().items():
            print(f"{name:35} {float(value):8.4f}")
    return losses


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--mode", choices=("online", "lookahead"), default="lookahead")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    train(options.output, options.mode, options.steps)


if __name__ == "__main__":
    main()
