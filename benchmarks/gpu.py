"""``make gpu-bench``: step, memory, host syncs, CUDA graphs and training on an accelerator.

Everything but the device's own instruments also runs on the CPU: ``--device cpu --tiny``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.contestants import BASELINE, Contestant, adamw, layers, metaadamw
from benchmarks.measure import (
    bandwidth,
    cuda_clock,
    environment,
    launch_clock,
    rounded,
    side_by_side,
    wall_clock,
)
from benchmarks.models import (
    ParamGroups,
    all_params,
    bare_groups,
    cross_entropy,
    token_batch,
    twins,
)
from metaadamw import Hypergradient, LookAhead, MetaAdamW, fine_grained_groups
from metaadamw_bench.models.language_model import LanguageModel

RESULTS = Path(__file__).parent / "results" / "gpu.json"
Section = dict[str, Any]


def contestants() -> list[Contestant]:
    """What is compared with ``AdamW(fused=True)``; one default, and each option on its own."""
    modulator = layers(2)
    return [
        adamw("AdamW foreach", foreach=True),
        metaadamw("MetaAdamW", modulator),
        metaadamw("MetaAdamW foreach", modulator, fused=None),
        metaadamw("MetaAdamW capturable", modulator, capturable=True),
        metaadamw("MetaAdamW, every 8th step", layers(2, update_every=8)),
        metaadamw("MetaAdamW online", modulator, online=True),
    ]


class Bench:
    """The measurements on one device.

    Args:
        device: where.
        tiny: sizes for a test.
    """

    def __init__(self, device: torch.device, tiny: bool) -> None:
        self.device, self.tiny, self.cuda = device, tiny, device.type == "cuda"
        self.rounds = 8 if tiny else 48

    def _groups(self, parameters: int, tensors: int) -> ParamGroups:
        torch.manual_seed(0)
        return bare_groups(parameters, tensors, min(14, tensors), self.device)

    def steps(self, parameters: int, tensors: int) -> Section:
        """Each contestant beside the baseline, two at a time so that a billion parameters fit."""
        needed = parameters * (8 + 2 * 12 + 8)  # the groups, two optimizers, temporaries
        if self.cuda and torch.cuda.mem_get_info(self.device)[0] < needed:
            return {"skipped": f"needs {needed / 2**30:.0f} GiB of free memory"}
        rows = [self._beside_baseline(c, parameters, tensors) for c in contestants()]
        return {"parameters": parameters, "tensors": tensors, "rows": rows}

    def _beside_baseline(self, contestant: Contestant, parameters: int, tensors: int) -> Section:
        groups = self._groups(parameters, tensors)
        baseline = adamw(BASELINE, fused=True)
        pair = {c.name: c.build(twins(groups)) for c in (baseline, contestant)}
        calls = {name: optimizer.step for name, optimizer in pair.items()}
        periods = {contestant.name: contestant.period}
        clock = cuda_clock if self.cuda else wall_clock
        timings = side_by_side(calls, rounds=self.rounds, periods=periods, clock=clock)
        launches = side_by_side(calls, rounds=self.rounds, periods=periods, clock=launch_clock)
        row: Section = {
            "name": contestant.name,
            **asdict(timings[contestant.name]),
            "ratio": timings[contestant.name].median / timings[BASELINE].median,
            "baseline": asdict(timings[BASELINE]),
            "launch": launches[contestant.name].median,
            "bytes_per_parameter": contestant.bytes_per_parameter,
        }
        if self.cuda:
            row["temporary_bytes"] = self._temporary_bytes(calls[contestant.name])
        return row

    def _temporary_bytes(self, step: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        for _ in range(8):
            step()
        return torch.cuda.max_memory_allocated(self.device) - before

    def sync_freedom(self) -> Section:
        """50 steps during which any wait for the device is an error, the learning rate moving."""
        result: Section = {}
        for contestant in contestants():
            optimizer = contestant.build(self._groups(20_000, 20))
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
            for _ in range(3):
                optimizer.step()
            if self.cuda:
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(50):
                    optimizer.step()
                    schedule.step()
                result[contestant.name] = "free"
            except RuntimeError as error:
                result[contestant.name] = f"waits: {str(error).splitlines()[0]}"
            finally:
                if self.cuda:
                    torch.cuda.set_sync_debug_mode("default")
        return result

    def graph(self) -> Section:
        """A captured step against the same steps taken one by one, with gradients that change."""
        return {
            f"{mode}, {'fused' if fused else 'foreach'}": attempt(
                lambda mode=mode, fused=fused: self._replayed(mode, fused)
            )
            for mode, fused in itertools.product(("lookahead", "online"), (True, None))
        }

    def _replayed(self, mode: Any, fused: bool | None) -> Section:
        groups = self._groups(20_000, 20)
        captured, plain = pair = [
            MetaAdamW(
                twins(groups),
                lr=torch.tensor(1e-3, device=self.device),
                modulator=layers(2),
                learning=LookAhead() if mode == "lookahead" else Hypergradient(),
                fused=fused,
                capturable=True,
            )
            for _ in range(2)
        ]
        replay = self._capture(captured, warmup=3)
        for _ in range(3):
            plain.step()
        for i in range(5):
            for param in all_params(groups):  # the twins share these gradients
                assert param.grad is not None
                param.grad.normal_(std=0.01)
            for optimizer in pair:
                for group in optimizer.param_groups:
                    group["lr"].fill_(1e-3 / (i + 1))
            replay()
            plain.step()
        differences = [
            (p - q).abs().max().item()
            for p, q in zip(*(all_params(o.param_groups) for o in pair), strict=True)
        ]
        row: Section = {"captured": self.cuda, "largest_difference": max(differences)}
        if self.cuda:
            timing = side_by_side({"replay": replay}, rounds=self.rounds, clock=cuda_clock)
            row["replay"] = asdict(timing["replay"])
        return row

    def _capture(self, optimizer: MetaAdamW, warmup: int) -> Callable[[], object]:
        if not self.cuda:
            for _ in range(warmup):
                optimizer.step()
            return optimizer.step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warmup):
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        return graph.replay

    def correctness(self) -> Section:
        """The same 20 steps here and on the CPU, in float32: the largest difference."""
        result: Section = {}
        for contestant in contestants():
            torch.manual_seed(0)
            here = bare_groups(20_000, 20, 5)
            there = twins(here)
            for param in all_params(there):
                param.grad = None
                param.data = param.data.to(self.device)
            pair = [contestant.build(here), contestant.build(there)]
            for _ in range(20):
                for p, q in zip(all_params(here), all_params(there), strict=True):
                    p.grad = 0.01 * torch.randn_like(p)
                    q.grad = p.grad.to(self.device)
                for optimizer in pair:
                    optimizer.step()
            result[contestant.name] = max(
                (p - q.cpu()).abs().max().item()
                for p, q in zip(all_params(here), all_params(there), strict=True)
            )
        return result

    def training(self) -> Section:
        """A model of GPT-2 small's shape: AdamW, then MetaAdamW with a meta-update in ten steps."""
        torch.set_float32_matmul_precision("high")
        steps, vocabulary, length, batch = (20, 50, 8, 2) if self.tiny else (60, 50_257, 512, 8)
        result: Section = {"steps": steps, "batch": batch, "length": length}
        for name in ("adamw", "metaadamw", "online"):
            torch.manual_seed(0)
            if self.tiny:
                model = LanguageModel(vocabulary, length, 16, dropout=0.0)
            else:
                model = LanguageModel(vocabulary, length, 768, 12, 12, dropout=0.0)
                model.head.weight = model.token_embedding.weight  # tied, as in GPT-2
            model.to(self.device)
            batches = [
                tuple(t.to(self.device) for t in token_batch(vocabulary, batch, length))
                for _ in range(4)
            ]
            result["parameters"] = sum(p.numel() for p in model.parameters())
            result[name] = attempt(
                lambda name=name, model=model, batches=batches: self._train(
                    name, model, batches, steps
                )
            )
        return result

    def _train(self, name: str, model: nn.Module, batches: list[Any], steps: int) -> Section:
        optimizer: Any
        if name == "adamw":
            optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
        else:
            mode = "online" if name == "online" else "lookahead"
            meta = (
                LookAhead(every=10, hvp="finite_difference")
                if mode == "lookahead"
                else Hypergradient()
            )
            groups = fine_grained_groups(model)
            optimizer = MetaAdamW(groups, lr=3e-4, modulator=layers(2), learning=meta, fused=True)
        losses, times = [], []
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

        def step() -> None:
            optimizer.zero_grad()
            loss = cross_entropy(model, batches[0])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if name != "adamw" and optimizer.meta_update_due:
                optimizer.update_attention(model, cross_entropy, *batches[1:])
            if self.cuda:
                torch.cuda.synchronize()

        for _ in range(steps):
            times.append(wall_clock(step))
        second_half = times[steps // 2 :]  # whole tens of steps, after the first compilations
        result: Section = {
            "seconds_per_step": sum(second_half) / len(second_half),
            "first_loss": losses[0].item(),
            "last_loss": losses[-1].item(),
        }
        if name != "adamw":
            result["applied"] = int(optimizer.metrics()["meta/applied"])
        if self.cuda:
            result["peak_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return result


def attempt(section: Callable[[], Section]) -> Section:
    """A section that fails says so and leaves the others alone."""
    try:
        return section()
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def run(device: torch.device, tiny: bool) -> Section:
    """All sections."""
    bench = Bench(device, tiny)
    sizes = ((12_000, 12), (50_000, 20)) if tiny else ((124_000_000, 148), (1_000_000_000, 292))
    numel = 1 << 12 if tiny else 1 << 27
    result: Section = {"environment": environment() | {"device": str(device), "tiny": tiny}}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        result["environment"]["device"] = properties.name
        result["environment"]["cuda"] = torch.version.cuda
    sections: dict[str, Callable[[], Section]] = {
        "bandwidth": lambda: {"bytes_per_second": bandwidth(device, numel)},
        **{f"steps_{p}": lambda p=p, t=t: bench.steps(p, t) for p, t in sizes},
        "sync_freedom": bench.sync_freedom,
        "graph": bench.graph,
        "correctness": bench.correctness,
        "training": bench.training,
    }
    for name, section in sections.items():
        print(f"{name} …", flush=True)
        result[name] = attempt(section)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return result


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 if a section failed; everything else is in the results nevertheless."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu --tiny tries the code without one")
    result = run(device, options.tiny)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(rounded(result), indent=1) + "\n")
    failed = [
        name
        for name, section in result.items()
        if "failed" in section
        or any("failed" in row for row in section.values() if isinstance(row, dict))
    ]
    print(f"{options.results}: {', '.join(failed) or 'nothing'} failed")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
