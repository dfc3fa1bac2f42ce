import math

import pytest
import torch

from metaadamw import Hypergradient, MetaAdamW, paper_preset
from metaadamw.learning.windows import window_at
from metaadamw_bench.ablations import ABLATIONS
from metaadamw_bench.arm_settings import _PAPER_EPOCH
from metaadamw_bench.arms import ARMS, get_arm
from metaadamw_bench.config import DoesNotFit, RunRequest
from metaadamw_bench.optimizers import lowest_log_alpha
from metaadamw_bench.parallel import Workplace
from metaadamw_bench.resolving import resolve
from metaadamw_bench.tasks import get_task, task_names
from metaadamw_bench.trainer import Trainer

EPOCH = 323  # of pydoc; digits has 9


def config(arm="adamw", task="digits", protocol="clean", **request):
    """A resolved configuration; the protocol is written over, the demo tasks have only one."""
    prepared = get_task(task).prepare()
    object.__setattr__(prepared, "protocol", protocol)
    return resolve(RunRequest(task=task, arm=arm, **request), prepared, get_arm(arm))


def trainer(arm, task="digits", protocol="clean", **request):
    prepared = get_task(task).prepare()
    resolved = config(arm, task, protocol, **request)
    return Trainer(prepared, get_arm(arm), resolved, Workplace(torch.device("cpu")))


def test_unknown_arm_is_refused_with_the_choice():
    with pytest.raises(ValueError, match="'sgd' is not one of adamw, adamw-tuned"):
        get_arm("sgd")


def test_every_arm_says_what_it_is():
    for name, arm in ARMS.items():
        assert arm.name == name
        assert arm.title
        assert len(arm.description) > 10
    assert {arm.tunes or arm.matches or "adamw" for arm in ARMS.values()} <= set(ARMS)


def test_the_key_changes_with_everything_that_changes_numbers():
    different = [
        config(),
        config(seed=1),
        config("nadam"),
        config(lr=0.1),
        config(weight_decay=0.1),
        config(epochs=2),
        config(max_steps=3),
        config(threads=2),
        config(device="cuda"),
        config(precision="bf16"),
        config("metaadamw"),
        config("metaadamw", changes={"learning.every": 7}),
        config("metaadamw", ablation="gating-on"),
    ]
    assert len({c.key for c in different}) == len(different)
    assert config().key == config().key
    assert config().as_json()["key"] == config().key


def test_paper_arm_of_another_task_has_an_epochs_rhythm():
    settings = config("metaadamw-paper").arm_settings
    assert settings["learning"]["every"] == settings["learning"]["warmup_steps"] == 9
    assert settings["modulator"]["init"] == "xavier"
    assert settings["learning"]["as_run"] == ()
    as_run = config("metaadamw-as-run").arm_settings
    assert len(as_run["learning"]["as_run"]) == 3
    assert as_run["modulator"]["frozen_gates"]
    frozen = config("metaadamw-random").arm_settings
    assert frozen["modulator"] == settings["modulator"]
    assert frozen["learning"]["kind"] == "off"


@pytest.mark.parametrize("name", [name for name in task_names() if get_task(name).paper])
def test_paper_arm_is_the_preset_at_full_size(name):
    _modulator, meta = paper_preset(name).values()
    assert meta.warmup_steps in (_PAPER_EPOCH[name], 217)
    assert _PAPER_EPOCH[name] % meta.every <= 11  # once, twice or ten times an epoch


def test_paper_rhythm_is_by_batch_index_from_the_second_epoch_on():
    run = trainer("metaadamw-paper", protocol="paper", changes={"learning.every": 4})
    due = []
    for step in range(1, 28):
        run.train_step()
        if run.meta_update_due:
            due.append(step)
            run.meta_update()
    # Nine batches an epoch: after batches 4 and 8 of the second and the third.
    assert due == [13, 17, 22, 26]


def test_elsewhere_the_library_says_when():
    run = trainer("metaadamw", changes={"learning.every": 4})
    due = []
    for step in range(1, 14):
        run.train_step()
        if run.meta_update_due:
            due.append(step)
            run.meta_update()
    assert due == [4, 8, 12]


def test_look_ahead_moves_as_far_in_as_many_steps_whatever_the_rhythm():
    reach = {}
    for every in (1, 10, 100, 500):
        name = "metaadamw-loss-decrease" + (f"-{every}" if every != 10 else "")
        meta = config(name).arm_settings["learning"]
        assert (meta["every"], meta["optimizer"], meta["hvp"]) == (every, "adam", "exact")
        reach[every] = meta["lr"] / every
    assert reach[1] == reach[10] == 0.01
    assert reach[100] * 100 == reach[500] * 500 == 0.5  # never by more than half in log α


def test_the_control_of_look_ahead_asks_the_training_part():
    asked = {}
    for name in ("metaadamw-loss-decrease", "metaadamw-loss-decrease-training"):
        run = trainer(name, changes={"learning.every": 2})
        splits = run.task.splits
        asked[name] = next(part for part in splits if part is run._held_out)
        for _ in range(2):
            run.train_step()
        assert run.meta_update_due
        assert run.meta_update().applied
    assert asked["metaadamw-loss-decrease"] is splits.meta_validation
    assert asked["metaadamw-loss-decrease-training"] is splits.train


def test_meta_validation_keeps_its_order_under_paper_and_not_elsewhere():
    paper, clean = (
        trainer("metaadamw", protocol=p)._order_validation[0].tolist() for p in ("paper", "clean")
    )
    assert paper == list(range(64))
    assert clean != paper


@pytest.mark.filterwarnings("ignore:objective='generalization_gap'")
@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_change_one_thing(name):
    arm = "metaadamw-paper"
    before = config(arm, "pydoc").arm_settings
    try:
        after = config(arm, "pydoc", ablation=name).arm_settings
    except DoesNotFit:
        assert name in (
            ["features-basic", "priorities-equal", "gating-off", "frequency-1", "encoder-8x16"]
        )
        return

    def flat(settings):
        return {
            **{k: v for k, v in settings.items() if not isinstance(v, dict)},
            **{f"modulator.{k}": v for k, v in settings["modulator"].items()},
            **{f"learning.{k}": v for k, v in settings["learning"].items()},
        }

    changed = {k for k, v in flat(before).items() if flat(after)[k] != v}
    assert 1 <= len(changed) <= 2
    trainer(arm, "pydoc", ablation=name).train_step()


@pytest.mark.parametrize(("times", "every"), [(1, EPOCH), (2, EPOCH // 2), (10, EPOCH // 10)])
def test_frequency_counts_per_epoch(times, every):
    found = config("metaadamw", "pydoc", ablation=f"frequency-{times}").arm_settings["learning"]
    assert found["every"] == pytest.approx(every, rel=0.1)


@pytest.mark.parametrize(
    ("arm", "request_", "message"),
    [
        ("adamw", {"ablation": "gating-on"}, "needs an arm with a modulator"),
        ("metaadamw-online", {"ablation": "objective-gap"}, "about meta-updates"),
        ("metaadamw-random", {"ablation": "priorities-none"}, "about meta-updates"),
        ("metaadamw", {"ablation": "gating"}, "'gating' is not one of"),
        ("metaadamw", {"changes": {"metta.every": 1}}, "no setting 'metta.every'"),
        ("metaadamw", {"changes": {"every": 1}}, "no setting 'every'"),
        ("metaadamw", {"changes": {"meta.evry": 1}}, "no setting 'meta.evry'"),
        ("adamw", {"changes": {"lr": 1}}, "it has: none"),
        ("adamw-matched", {}, "needs a finished run of metaadamw"),
        ("muon", {}, "muon does not fit the model of digits"),
    ],
)
def test_what_makes_no_sense_is_refused(arm, request_, message):
    with pytest.raises(ValueError, match=message):
        config(arm, **request_)


def test_bad_values_are_refused_by_the_library():
    with pytest.raises(ValueError, match="every must be an integer >= 1"):
        trainer("metaadamw", changes={"learning.every": 0})


def test_settings_reach_the_optimizer():
    optimizer = trainer("metaadamw-online", changes={"learning.lr": 0.5}).optimizer
    assert isinstance(optimizer, MetaAdamW)
    assert optimizer._controller.learning.options == Hypergradient(lr=0.5)
    native = trainer("metaadamw", ablation="grouping-original").optimizer
    assert native.group_names == ["group0"]


def test_groups_of_a_layer_and_of_a_tensor():
    model = trainer("metaadamw").model
    by_layer, by_tensor = (
        trainer("metaadamw-two-horizons", ablation=f"grouping-{unit}").optimizer
        for unit in ("layer", "tensor")
    )
    assert by_tensor.group_names == [name for name, _ in model.named_parameters()]
    assert by_layer.group_names == [
        name for name, module in model.named_modules() if module._parameters
    ]
    assert [len(g["params"]) for g in by_tensor.param_groups] == [1] * len(by_tensor.group_names)


def test_cosine_ends_at_zero():
    run = trainer("adamw-cosine", epochs=2)
    optimizer, _ = run.optimizer.parts
    rates = []
    for _ in range(18):
        rates.append(optimizer.param_groups[0]["lr"])
        run.train_step()
    assert rates[0] == 0.01
    assert rates[9] == pytest.approx(0.005)
    assert rates == sorted(rates, reverse=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_metaadamw_follows_the_same_cosine():
    frozen = {"learning.lr": 0.0}
    same = {"epochs": 2, "weight_decay": 1e-2, "changes": frozen}
    mine = trainer("metaadamw-redistribution-cosine", **same)
    adamw = trainer("adamw-cosine", epochs=2)
    losses = [mine.train_step() for _ in range(7)]
    assert losses == [adamw.train_step() for _ in range(7)]
    resumed = trainer("metaadamw-redistribution-cosine", **same)
    resumed.load_state_dict(mine.state_dict())
    assert [resumed.train_step() for _ in range(9)] == [adamw.train_step() for _ in range(9)]


def test_matched_is_adamw_at_another_learning_rate():
    matched = config("adamw-matched", changes={"mean_alpha": 0.5})
    assert matched.lr == 0.005
    first, second = (
        trainer("adamw", lr=0.005),
        trainer("adamw-matched", changes={"mean_alpha": 0.5}),
    )
    assert [first.train_step() for _ in range(3)] == [second.train_step() for _ in range(3)]


def test_arms_share_weights_batches_and_dropout():
    losses = {
        arm: trainer(arm, "pydoc").train_step() for arm in ("adamw", "metaadamw-paper", "muon")
    }
    assert len(set(losses.values())) == 1
    assert math.isfinite(losses["adamw"])


def test_schedule_free_is_evaluated_at_its_average():
    pytest.importorskip("schedulefree")
    run = trainer("schedulefree")
    run.train_step()
    run.train_step()
    training = {k: v.clone() for k, v in run.model.named_parameters()}
    _, weights = run.evaluate(run.task.splits.validation)
    assert any(not torch.equal(weights[k], v) for k, v in training.items())
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(parameter, training[name])
    assert all(group["train_mode"] for group in run.optimizer.param_groups)


def test_bf16_computes_in_bf16():
    run = trainer("adamw")
    object.__setattr__(run.workplace, "bf16", True)
    exact, rounded = trainer("adamw").train_step(), run.train_step()
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


@pytest.mark.parametrize("arm", ["metaadamw-scalars", "metaadamw-slow-mean"])
def test_only_the_first_windows_have_a_lower_limit(arm):
    same = {"modulator.alpha_start": 0.5, "learning.mean_speed": 1.0, "learning.window": 2}
    run = trainer(arm, lr=1.0, epochs=10, changes=same)  # a rate that is far too high
    room = []
    for step in range(80):
        begin, _ = window_at(step, 2)
        run.train_step()
        lowest = lowest_log_alpha(0.5, begin, 2)
        room.append(run.optimizer.modulation.alpha.log().min().item() - lowest)
    # What the damping of Gauss-Newton leaves to the limit, and float32.
    assert (min(room) > -1e-6) == (arm == "metaadamw-scalars")
    assert min(room) < 0.2


def test_inverse_time_is_the_lower_limit_of_the_factors():
    run = trainer("adamw-inverse-time", max_steps=3, changes={"window": 75 / 100})
    rates = []
    for _ in range(16):
        rates.append(run.optimizer.parts[0].param_groups[0]["lr"] / run.config.lr)
        run.train_step()
    # A hundredth of the first window: growing windows begin at step 7.5.
    assert rates == pytest.approx([0.5] * 8 + [0.5 * 7.5 / step for step in range(8, 16)])
    ours = config("metaadamw-scalars")
    assert run.config.weight_decay == ours.weight_decay
    assert config("adamw-inverse-time").arm_settings == {
        "alpha_start": ours.arm_settings["modulator"]["alpha_start"],
        "window": ours.arm_settings["learning"]["window"],
    }
