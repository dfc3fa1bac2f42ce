"""The Transformer that forecasts ETTh1."""

from __future__ import annotations

from torch import Tensor, nn

from metaadamw_bench.models.positions import Positions

__all__ = ["Forecaster"]


class Forecaster(nn.Module):
    """Reads a window of one series and predicts its next value from the last position."""

    def __init__(
        self,
        window: int = 96,
        width: int = 128,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.input = nn.Linear(1, width)
        self.positions = Positions(window, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.output = nn.Linear(width, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, windows: Tensor) -> Tensor:
        """Map windows ``[N, T]`` to next values ``[N, 1]``."""
        hidden = self.encoder(self.positions(self.input(windows.unsqueeze(-1))))
        prediction: Tensor = self.output(hidden[:, -1])
        return prediction
