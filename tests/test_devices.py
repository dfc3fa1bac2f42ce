"""Several devices in one process: each tensor is updated where it lies, α and β come from all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaadamw import Attention, MetaAdamW
from tests.distributed.processes import Processes
from tests.fake_devices import counters_after_loading, steps
from tests.learning import learning_of

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("scale_free", {"foreach": True}),
    ("enhanced", {"foreach": False}),
)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Processes]:
    processes = Processes(1)
    yield processes
    processes.close()


@pytest.mark.parametrize("mode", ["online", "lookahead"])
@pytest.mark.parametrize("names", [["a", "b", "cpu"], ["cpu", "a"]], ids="-".join)
def test_every_tensor_stays_where_it_is(elsewhere, names, mode):
    """Statistics are gathered on the device of the first parameter; the host waits for its own."""
    for features, options in OPTIONS:
        (result,) = elsewhere.run(_steps, names, mode, features, options)
        assert result["modulation"] == result["wanted"][0]
        assert result["moments"] == result["wanted"]
        assert result["unwaited"] == 0


def _steps(names: list[str], mode: str, features: str, options: dict[str, Any]) -> dict[str, Any]:
    return steps(names, mode, features, **options)


def test_moments_away_from_their_parameter_are_refused(elsewhere):
    (raised,) = elsewhere.outcomes(_steps, ["a", "b"], "online", "basic", {"moved": True})
    assert raised.kind == "ValueError"
    assert "state must be on the device of its parameter, elsewhere:0, got exp_avg on cpu" in (
        raised.message
    )
    assert "CPUOffloadPolicy" in raised.message


@pytest.mark.parametrize(
    ("options", "device"),
    [({}, "cpu"), ({"foreach": True}, "cpu"), ({"capturable": True}, "elsewhere:0")],
)
def test_step_counters_are_loaded_to_where_they_belong(elsewhere, options, device):
    """Not where the checkpoint had them: each would be read from the device at every step."""
    assert elsewhere.run(_counters, options) == [{device}]


def _counters(options: dict[str, Any]) -> set[str]:
    return counters_after_loading(**options)


CUDA = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
PAIRS = list(itertools.permutations([*CUDA[:2], "cpu"], 2))


class Split(nn.Module):
    """Two layers on two devices."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8, dtype=torch.float64).to(first)
        self.second = nn.Linear(8, 1, dtype=torch.float64).to(second)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.to(self.first.weight.device)).tanh()
        return self.second(hidden.to(self.second.weight.device))


@pytest.mark.skipif(not PAIRS, reason="needs a second device")
@pytest.mark.parametrize("mode", ["online", "lookahead"])
@pytest.mark.parametrize("pair", PAIRS or [("cpu", "cpu")])
def test_a_model_on_two_devices_trains_as_on_one(pair, mode):
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x).cpu() - x.sum(1, keepdim=True)).square().mean()

    def run(first: str, second: str) -> list[Tensor]:
        model = Split(first, second)
        meta = learning_of(mode, every=2, lr=1e-2)
        modulator = Attention(init="xavier")
        groups = [{"params": [p]} for p in model.parameters()]
        optimizer = MetaAdamW(groups, lr=1e-2, modulator=modulator, learning=meta, foreach=False)
        data = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for i in range(10):
            optimizer.zero_grad()
            loss(model, data[i : i + 8]).backward()
            optimizer.step()
            if optimizer.meta_update_due:
                update = optimizer.update_attention(model, loss, data[:8], data[8:16], data[16:])
                assert update.applied
        factors = [optimizer.modulation.alpha, optimizer.modulation.beta]
        return [t.detach().cpu() for t in (*model.parameters(), *factors)]

    torch.testing.assert_close(run(*pair), run("cpu", "cpu"), rtol=1e-9, atol=1e-9)
