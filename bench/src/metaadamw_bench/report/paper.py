"""The paper's own numbers, to be shown beside ours, and what its authors' AdamW curves read."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FIGURES", "PAPER", "PAPER_ARMS", "TABLE3", "PaperTask"]


class PaperTask(NamedTuple):
    """Tables 2 and 5 for one task; accuracies in percent.

    ``curve`` holds the authors' AdamW validation metric after epochs 1 and 5 and at its best.
    """

    figure: int
    metric: str
    adamw: float
    metaadamw: float
    adamw_epoch_seconds: float
    metaadamw_epoch_seconds: float
    adamw_seconds: float
    metaadamw_seconds: float
    curve: tuple[float, float, float]


PAPER = {
    "etth1": PaperTask(
        1, "MSE", 0.006147, 0.005885, 93.39, 99.04, 747, 693, (0.0242, 0.00625, 0.00615)
    ),
    "wikitext2": PaperTask(
        2, "perplexity", 120.47, 115.51, 373.58, 357.32, 5604, 4645, (390, 162, 120.5)
    ),
    "multi30k": PaperTask(
        3, "perplexity", 2.0297, 1.9690, 895.25, 957.67, 18800, 23942, (2.71, 2.27, 2.03)
    ),
    "cifar10": PaperTask(
        4, "accuracy, %", 87.02, 88.05, 2410.36, 2635.86, 28924, 36902, (53.5, 78.6, 87.0)
    ),
    "imdb": PaperTask(
        5, "accuracy, %", 74.53, 82.79, 283.35, 356.40, 1700, 4633, (59.7, 74.5, 74.5)
    ),
}

FIGURES = {name: task.figure for name, task in PAPER.items()}

# The arms that run what the paper's two columns ran.
PAPER_ARMS = {
    "adamw": "adamw",
    "metaadamw-paper": "metaadamw",
    "metaadamw-as-run": "metaadamw",
}

# Table 3: (section, configuration) -> value per task; "baseline" cells are left away.
TABLE3: dict[tuple[str, str], dict[str, float]] = {
    ("Grouping strategy", "Original"): {"wikitext2": 116.13},
    ("Feature version", "Basic"): {"imdb": 79.38},
    ("Feature version", "Basic plus"): {"wikitext2": 117.78, "multi30k": 2.6180},
    ("Feature version", "Enhanced"): {"wikitext2": 121.02},
    ("Meta-learning objective", "Gradient"): {"wikitext2": 116.13, "cifar10": 83.04},
    ("Meta-learning objective", "Loss decrease"): {"wikitext2": 116.70},
    ("Meta-learning objective", "Generalization gap"): {"wikitext2": 116.47},
    ("HUW priorities", "No HUW"): {"wikitext2": 116.13},
    ("HUW priorities", "[1.0, 1.0, 1.0]"): {"multi30k": 2.1205, "cifar10": 86.02},
    ("HUW priorities", "Not [1.0, 1.0, 1.0]"): {"wikitext2": 115.57},
    ("Feature gating", "Enable"): {"wikitext2": 116.17, "multi30k": 2.6180, "cifar10": 86.02},
    ("Feature gating", "Disable"): {"etth1": 0.005932, "imdb": 79.38},
    ("Meta-update frequency", "Once per epoch"): {"cifar10": 87.76, "imdb": 67.67},
    ("Meta-update frequency", "Approx. twice per epoch"): {"wikitext2": 116.13},
    ("Meta-update frequency", "Approx. 10 times per epoch"): {
        "wikitext2": 116.52,
        "multi30k": 2.0338,
    },
    ("Attention module", "8 layers, hidden 16"): {"multi30k": 2.0338, "cifar10": 85.79},
    ("Attention module", "Not 8 layers, hidden 16"): {"wikitext2": 116.32},
}
