"""``metaadamw run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from metaadamw_bench.commands.app import app
from metaadamw_bench.commands.options import (
    AblationName,
    ArmName,
    DataDir,
    Device,
    Epochs,
    MaxSteps,
    Precisions,
    Protocols,
    Sizes,
    TaskName,
    Threads,
    key_values,
)
from metaadamw_bench.places import run_place
from metaadamw_bench.printable import printable


@app.command()
def run(
    task: TaskName,
    arm: ArmName = "metaadamw",
    seed: Annotated[
        int, typer.Option(min=0, help="Fixes weights, order, dropout, augmentation, everything.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="The run's directory, by default below runs/, where a sweep would put it.",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        Protocols,
        typer.Option(
            help="paper: as its authors ran it, flaws and all. clean: disjoint splits, test read "
            "once at the end."
        ),
    ] = Protocols.clean,
    size: Annotated[
        Sizes, typer.Option(help="full: the paper's. small: reduced to minutes on a CPU.")
    ] = Sizes.small,
    data_dir: DataDir = None,
    ablation: AblationName = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    lr: Annotated[
        float | None, typer.Option(min=0.0, help="Learning rate, instead of the task's.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(min=0.0, help="Weight decay, instead of the task's.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of the arm, such as learning.every=10; repeatable.",
        ),
    ] = None,
    device: Device = "cpu",
    precision: Annotated[
        Precisions, typer.Option(help="bf16: forward passes under bfloat16 autocast.")
    ] = Precisions.fp32,
    threads: Threads = 1,
    tuning: Annotated[
        Path | None,
        typer.Option(help="Where a tuned arm keeps its grid, by default OUT/tuning."),
    ] = None,
    matched_to: Annotated[
        Path | None,
        typer.Option(
            help="Run directory or packed run whose mean α or factors a matched arm takes."
        ),
    ] = None,
    mean_alpha: Annotated[
        float | None, typer.Option(min=0.0, help="The mean α itself, for a matched arm.")
    ] = None,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0.0, help="Time between two checkpoints.")
    ] = 30.0,
    keep_checkpoint: Annotated[
        bool, typer.Option(help="Keep the last checkpoint when the run is done.")
    ] = True,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", help="Start over, also where the run is done or has a checkpoint."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Train one task with one optimizer and one seed.

    Leaves config.json, environment.json, metrics.jsonl, seconds.jsonl, modulation.csv (what
    MetaAdamW did to each group), checkpoint.pt and, once done, summary.json. Stopped at any
    moment, even by kill -9, the same command goes on at the last checkpoint and comes to the same
    numbers, to the last bit. A checkpoint that cannot be used, as of another version of torch,
    ends the command and stays; a run that is done is not repeated: `--restart` starts over.

    With torchrun every batch is shared out over the processes: AdamW and its like average their
    gradients (DistributedDataParallel); MetaAdamW's meta-updates are computed alike by every
    process, on whole batches. Batch norms see each process's part alone.

    **Examples**

    - `metaadamw run digits --arm adamw --seed 0`
    - `metaadamw run etth1 --arm metaadamw-online --protocol paper --size full`
    - `metaadamw run cifar10 --size full --device cuda --precision bf16`
    - `metaadamw run wikitext2 --arm metaadamw-paper --ablation features-enhanced`
    - `torchrun --nproc-per-node 2 -m metaadamw_bench run wikitext2 --arm adamw`
    """
    import torch.distributed

    from metaadamw_bench.arms import get_arm
    from metaadamw_bench.config import RunRequest
    from metaadamw_bench.parallel import is_main_process, processes
    from metaadamw_bench.references import References, fill_in
    from metaadamw_bench.resolving import resolve
    from metaadamw_bench.runs import RunOptions, execute, finished_summary, prepare

    _refuse_unread(arm, tuning, matched_to, mean_alpha)
    request = RunRequest(
        task=task,
        arm=arm,
        seed=seed,
        protocol=protocol.value,
        size=size.value,
        ablation=ablation,
        epochs=epochs,
        max_steps=max_steps,
        lr=lr,
        weight_decay=weight_decay,
        changes=key_values(set_),
        threads=threads,
        device=device,
        precision=precision.value,
    )
    directory = out or run_place(Path("runs"), request)
    options = RunOptions(
        data_dir=data_dir,
        checkpoint_seconds=checkpoint_seconds,
        keep_checkpoint=keep_checkpoint,
        shown=not quiet,
        restart=restart,
    )
    references = References(
        tuning=tuning or directory / "tuning", matched_to=matched_to, mean_alpha=mean_alpha
    )
    prepared = prepare(request, data_dir)
    for note in prepared.notes if not quiet and is_main_process() else ():
        typer.echo(f"note: {note}", err=True)
    request = fill_in(request, references, options, prepared)
    config = resolve(request, prepared, get_arm(arm), processes())
    done = not restart and finished_summary(directory, config) is not None
    summary = execute(request, directory, options, prepared)
    if is_main_process():
        typer.echo(_conclusion(summary, directory) + (_ALREADY_DONE if done else ""))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _refuse_unread(
    arm: str, tuning: Path | None, matched_to: Path | None, mean_alpha: float | None
) -> None:
    """Refuse an option that this arm does not read."""
    from metaadamw_bench.arms import ARMS

    tunes, matches = ARMS[arm].tunes, ARMS[arm].matches
    for name, value, read in (
        ("--tuning", tuning, tunes),
        ("--matched-to", matched_to, matches),
        ("--mean-alpha", mean_alpha, matches),
    ):
        if value is not None and read is None:
            raise typer.BadParameter(f"arm {arm} does not read it", param_hint=name)
    if matched_to is not None and mean_alpha is not None:
        raise typer.BadParameter("not together with --matched-to", param_hint="--mean-alpha")


_ALREADY_DONE = " (already done, nothing was repeated; --restart does it anew)"


def _conclusion(summary: dict[str, Any], directory: Path) -> str:
    best, test = summary["best_metric"], summary["test_metric"]
    return (
        f"{summary['task']}, {summary['arm']}, seed {summary['seed']}: {summary['metric_name']} "
        f"{'not finite' if best is None else f'{best:.6g}'} on validation, "
        f"best at epoch {summary['best_epoch']} of {summary['epochs']}"
        + ("" if test is None else f"; {test:.6g} on test")
        + f"; {summary['seconds']['total']:.1f} s; {printable(directory)}"
    )
