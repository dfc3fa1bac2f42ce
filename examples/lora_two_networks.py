"""LoRA adapters of two networks, each with a learning rate and decay of its own that are learned.

    pip install '.[peft]' scikit-learn
    python examples/lora_two_networks.py

A text encoder and a U-Net draw digits from their names: "seven" and noise in, the noise to remove
out. Both know the digits 0 to 4 and are taught 5 to 9 through adapters; their own weights stay as
they are. The U-Net's adapters are trained from the start, those of the text encoder are added
halfway.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_digits
from torch import Tensor, nn

from metaadamw import Attention, Hypergradient, MetaAdamW, NumberedBatches, fine_grained_groups

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LONGEST = max(map(len, NAMES))
TEXT_LAYERS = ("query", "key", "value", "output")
UNET_LAYERS = ("down1", "down2", "from_text", "middle", "up2", "up1")
Batch = tuple[Tensor, Tensor]


class TextEncoder(nn.Module):
    """The letters of a word -> one vector, by self-attention."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(27, width)
        self.position = nn.Parameter(0.1 * torch.randn(LONGEST, width))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, letters: Tensor) -> Tensor:
        """Letters [N, L] to vectors [N, width]."""
        hidden = self.embedding(letters) + self.position
        scores = self.query(hidden) @ self.key(hidden).mT / hidden.shape[-1] ** 0.5
        mixed = scores.softmax(-1) @ self.value(hidden)
        vectors: Tensor = self.output((hidden + mixed).mean(1))
        return vectors


class UNet(nn.Module):
    """Noisy images, how noisy they are, and a text vector -> the noise."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, width, 3, padding=1)
        self.down2 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.from_text = nn.Linear(width + 1, width)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.up2 = nn.Conv2d(width, width, 3, padding=1)
        self.up1 = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, images: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """Images [N, 1, 8, 8], levels [N, 1], text [N, width] to noise [N, 1, 8, 8]."""
        fine = self.down1(images).relu()
        condition = self.from_text(torch.cat([text, level], 1))[:, :, None, None]
        coarse = (self.down2(fine) + condition).relu()
        coarse = (self.middle(coarse) + condition).relu()
        raised = self.up2(nn.functional.interpolate(coarse, scale_factor=2)).relu()
        noise: Tensor = self.up1(torch.cat([fine, raised], 1))
        return noise


def load(digits: range) -> list[Batch]:
    """Images of these digits, 8 × 8 in [-1, 1], and the letters of their names."""
    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    letters = torch.tensor([[ord(c) - 96 for c in n] + [0] * (LONGEST - len(n)) for n in NAMES])
    return [
        (image, letters[digit])
        for image, digit in zip(images, data.target.tolist(), strict=True)
        if digit in digits
    ]


def loss_fn(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    """Mean squared error of the noise, at a random level of it."""
    images, letters = batch
    level, noise = torch.rand(len(images), 1), torch.randn_like(images)
    share = level[:, :, None, None]
    noisy = (1 - share).sqrt() * images + share.sqrt() * noise
    found = networks["unet"](noisy, level, networks["text_encoder"](letters))
    return nn.functional.mse_loss(found, noise)


@torch.no_grad()
def evaluate(networks: nn.ModuleDict, data: list[Batch]) -> float:
    """The loss over all examples, with the same noise every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batches = NumberedBatches(data, 128)
        return sum(loss_fn(networks, batches[n]).item() for n in range(8)) / 8


def add_adapters(
    networks: nn.ModuleDict, name: str, *layers: str, finer: bool
) -> list[dict[str, Any]]:
    """Freeze a network and give it adapters; its param groups, named after it.

    One group is one α and one β for the network. Finer: one for each kind of layer in it.
    """
    networks[name].requires_grad_(False)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(layers))
    networks[name] = get_peft_model(networks[name], config)
    trainable = [p for p in networks[name].parameters() if p.requires_grad]
    group = {"name": name, "params": trainable}
    return fine_grained_groups(networks, [group]) if finer else [group]


def report(step: int, optimizer: MetaAdamW) -> None:
    """The factor on learning rate (α) and on weight decay (β) of every group."""
    alpha, beta, *_ = optimizer.modulation
    for name, a, b in zip(optimizer.group_names, alpha.tolist(), beta.tolist(), strict=True):
        print(f"step {step:4}  {name:40}  α {a:.3f}  β {b:.3f}")


def main() -> None:
    """Train the two networks, then their adapters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of the adapters")
    parser.add_argument("--finer", action="store_true", help="several groups for each network")
    options = parser.parse_args()

    torch.manual_seed(0)
    networks = nn.ModuleDict({"text_encoder": TextEncoder(), "unet": UNet()})
    known, new = load(range(5)), load(range(5, 10))
    batches = NumberedBatches(known, 64)
    adamw = torch.optim.AdamW(networks.parameters(), lr=3e-3)
    for n in range(options.steps):
        adamw.zero_grad()
        loss_fn(networks, batches[n]).backward()
        adamw.step()

    groups = add_adapters(networks, "unet", *UNET_LAYERS, finer=options.finer)
    networks["text_encoder"].requires_grad_(False)
    print(f"digits 5-9, before: {evaluate(networks, new):.4f}")
    optimizer = MetaAdamW(
        groups,
        lr=1e-3,
        modulator=Attention(features="scale_free"),  # networks of different sizes
        learning=Hypergradient(),
    )
    batches = NumberedBatches(new, 64)
    for n in range(options.steps):
        if n == options.steps // 2:  # what was learned so far stays
            for group in add_adapters(networks, "text_encoder", *TEXT_LAYERS, finer=options.finer):
                optimizer.add_param_group(group)
        optimizer.zero_grad()
        loss_fn(networks, batches[n]).backward()
        optimizer.step()
        if (n + 1) % max(options.steps // 6, 1) == 0:
            report(n + 1, optimizer)
    print(f"digits 5-9, after: {evaluate(networks, new):.4f}")


if __name__ == "__main__":
    main()
