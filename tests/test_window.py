"""Online mode in windows: against a twin that keeps every parameter of every step."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metaadamw import Attention, Factors, MetaAdamW, Windows, fine_grained_groups
from metaadamw.learning.gauss_newton import DAMPING, gauss_newton
from metaadamw.learning.windows import window_at
from tests.learning import modulator_of
from tests.reference.window import boundaries, train_in_windows

WINDOW = 4
SCALARS = Factors(alpha_range=2.0, update_every=1)
ATTENTION = Attention(features="scale_free", layers=1, scale="log", alpha_range=2.0)
META = Windows(window=WINDOW, lr=2.0, mean_speed=1.0)


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 2), (5,), ()]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def noisy_gradients(theta, step):
    """Of an ill-conditioned quadratic, with noise that follows from the step."""
    generator = torch.Generator().manual_seed(step)
    return [
        10.0**i * p + torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for i, p in enumerate(theta)
    ]


def gradients_with_gaps(theta, step):
    """The first tensor in two steps of three, the second frozen for a while, the third late."""
    grads = noisy_gradients(theta, step)
    missing = [step % 3 == 0, 25 < step <= 60, step <= 10]
    return [None if none else g for g, none in zip(grads, missing, strict=True)]


def optimizer_of(params, modulator=SCALARS, meta=META, **options):
    groups = [{"params": [p], "name": f"g{i}"} for i, p in enumerate(params)]
    return MetaAdamW(groups, lr=0.02, modulator=modulator, learning=meta, **options)


def run(optimizer, params, steps, start=0, gradients=noisy_gradients):
    for step in range(start + 1, start + steps + 1):
        for p, g in zip(params, gradients([p.detach() for p in params], step), strict=True):
            p.grad = g
        optimizer.step()


def rising_and_falling(t):
    """A warm-up of twenty steps, then down to a tenth."""
    return min(t / 20, max(1 - (t - 20) / 60, 0.1))


@pytest.mark.parametrize("gradients", [noisy_gradients, gradients_with_gaps])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize(
    ("factors", "speed", "scheduled"),
    [
        ({}, 1.0, False),
        ({"alpha_start": 0.5}, 1.0, False),
        ({}, 0.5, False),
        ({}, 0.0, False),
        ({"mean_preserving": True}, 0.5, False),
        ({}, 0.5, True),
        ({"mean_preserving": True}, 0.5, True),
    ],
    ids=str,
)
def test_scalars_follow_the_twin(gradients, seed, path, factors, speed, scheduled):
    schedule = rising_and_falling if scheduled else lambda t: 1.0
    params = [nn.Parameter(p) for p in tensors(seed)]
    steps = 90  # windows grow from step 40 on
    history, alphas = train_in_windows(
        tensors(seed),
        gradients,
        steps=steps,
        window=WINDOW,
        lr=0.02,
        gain=2.0,
        alpha_range=2.0,
        mean_speed=speed,
        schedule=schedule,
        **factors,
    )
    modulator, meta = replace(SCALARS, **factors), replace(META, mean_speed=speed)
    optimizer = optimizer_of(params, modulator, meta, **path)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * schedule(step + 1)
        run(optimizer, params, 1, step, gradients)
        # Both sum in float64 in other orders; ninety steps amplify that a little.
        found, expected = (
            optimizer.modulation.alpha,
            torch.tensor(alphas[step], dtype=torch.float64),
        )
        torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=0)
        for p, q in zip(params, history[step + 1], strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=1e-9, atol=1e-11)
    begin = factors.get("alpha_start", 1.0)
    assert optimizer.modulation.alpha.sub(begin).abs().min() > 1e-2
    assert (optimizer.modulation.beta == 1).all()


@pytest.mark.parametrize("first", [1, 2, 4, 75])
def test_windows_grow(first):
    begins = boundaries(3000, first)
    assert begins[:3] == [0, first, 2 * first]
    for steps in range(3000):
        begin, end = window_at(steps, first)
        assert begin <= steps < end
        assert begin in begins
        assert end - begin == max(first, begin // 10)


@pytest.mark.parametrize("lr", [1e-4, 1.0])
def test_a_rate_that_is_far_off_is_found(lr):
    """From four orders of magnitude apart to within two."""
    params = [nn.Parameter(torch.ones(20, dtype=torch.float64))]
    modulator = Factors(alpha_range=10.0, update_every=1)
    optimizer = MetaAdamW(
        params, lr=lr, modulator=modulator, learning=Windows(window=WINDOW, mean_speed=1.0)
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(1200):
        noise = torch.randn(20, generator=generator, dtype=torch.float64)
        params[0].grad = params[0].detach() + noise
        optimizer.step()
    assert 1e-3 < lr * optimizer.modulation.alpha.item() < 1e-1


def test_a_window_counts_its_own_gradients_only():
    """What momentum still carries from the window before is in neither D nor S."""
    params = [nn.Parameter(torch.zeros(8, dtype=torch.float64))]
    meta = Windows(window=20, lr=0.0, mean_speed=1.0)
    optimizer = optimizer_of(params, meta=meta, weight_decay=0.0)
    pushed = torch.randn(8, dtype=torch.float64)
    for step in range(201):
        params[0].grad = pushed if step < 180 else torch.zeros_like(pushed)
        optimizer.step()
        if step == 180:
            before = params[0].detach().clone()
    carried = (before - params[0].detach()).abs()
    assert carried.min() > 0.1
    # In the twenty steps v̂ falls by a tenth, while most of the momentum is gone after ten.
    assert (optimizer.state[params[0]]["displacement"].abs() < 0.05 * carried).all()


@pytest.mark.parametrize("modulator", [SCALARS, ATTENTION], ids=["scalars", "attention"])
def test_adamw_until_two_windows_are_over(modulator):
    params, others = ([nn.Parameter(p) for p in tensors(0)] for _ in range(2))
    optimizer = optimizer_of(params, modulator)
    adamw = torch.optim.AdamW([{"params": [p]} for p in others], lr=0.02)
    run(optimizer, params, 2 * WINDOW)
    run(adamw, others, 2 * WINDOW)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    run(optimizer, params, 1, 2 * WINDOW)
    run(adamw, others, 1, 2 * WINDOW)
    assert not any(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("modulator", [SCALARS, ATTENTION], ids=["scalars", "attention"])
@pytest.mark.parametrize("cut", [1, WINDOW, 2 * WINDOW + 1, 3 * WINDOW + 2])
@pytest.mark.parametrize("way", ["file", "deepcopy"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_resume_is_exact(modulator, cut, way, dtype):
    params = [nn.Parameter(p.to(dtype)) for p in tensors(1)]
    optimizer = optimizer_of(params, modulator)
    run(optimizer, params, cut)
    if way == "file":
        file = io.BytesIO()
        torch.save([optimizer.state_dict(), [p.detach() for p in params]], file)
        file.seek(0)
        state, values = torch.load(file, weights_only=True)
        others = [nn.Parameter(p) for p in values]
        resumed = optimizer_of(others, modulator)
        resumed.load_state_dict(state)
    else:
        others, resumed = copy.deepcopy((params, optimizer))
    run(optimizer, params, 3 * WINDOW, cut)
    run(resumed, others, 3 * WINDOW, cut)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert torch.equal(optimizer.modulation.alpha, resumed.modulation.alpha)


def test_a_missing_gradient_moves_no_factor_of_its_group():
    params = [nn.Parameter(p) for p in tensors(2)]
    optimizer = optimizer_of(params)
    for step in range(1, 5 * WINDOW):
        params[0].grad, params[1].grad, _ = noisy_gradients([p.detach() for p in params], step)
        optimizer.step()
    alpha = optimizer.modulation.alpha
    assert alpha[2] == 1
    assert (alpha[:2] != 1).all()


def test_a_non_finite_gradient_teaches_nothing():
    params = [nn.Parameter(p) for p in tensors(2)]
    optimizer = optimizer_of(params)
    run(optimizer, params, 2 * WINDOW)
    before = optimizer.modulator.raw.detach().clone()
    optimizer.state[params[0]]["exp_avg"].fill_(torch.nan)
    run(optimizer, params, 1, 2 * WINDOW)
    assert torch.equal(optimizer.modulator.raw, before)
    assert optimizer.metrics()["meta/skipped"] == 1


def test_an_adamw_checkpoint_begins_its_windows_where_it_is_loaded():
    params = [nn.Parameter(p) for p in tensors(3)]
    adamw = torch.optim.AdamW([{"params": [p]} for p in params], lr=0.02)
    run(adamw, params, 5)
    optimizer = optimizer_of(params)
    with pytest.warns(UserWarning, match="no learned part"):
        optimizer.load_state_dict(adamw.state_dict())
    run(optimizer, params, 6 * WINDOW, 5)
    assert optimizer.modulation.alpha.isfinite().all()
    assert (optimizer.modulation.alpha != 1).all()


def test_a_parameter_exchanged_for_a_longer_one():
    """With its moments, as Gaussian splatting does it; the window begins anew."""
    param = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    optimizer = optimizer_of([param])
    run(optimizer, [param], 2 * WINDOW + 1)
    state = optimizer.state.pop(param)
    longer = nn.Parameter(torch.cat([param.detach(), torch.ones(1, 2, dtype=torch.float64)]))
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = torch.cat([state[key], torch.zeros(1, 2, dtype=torch.float64)])
    optimizer.param_groups[0]["params"] = [longer]
    optimizer.state[longer] = state
    run(optimizer, [longer], 1, 2 * WINDOW + 1)
    assert optimizer._controller.learning.starts.begun[longer].step == 2 * WINDOW + 1
    assert {key: t.shape for key, t in state.items() if key != "step"} == dict.fromkeys(
        ("exp_avg", "exp_avg_sq", "window_start", "displacement"), longer.shape
    )
    before = optimizer.modulation.alpha
    run(optimizer, [longer], 3 * WINDOW, 2 * WINDOW + 2)
    assert optimizer.modulation.alpha != before


def test_a_group_added_at_the_end_of_a_window():
    """At which rates the others went is forgotten then: their window takes in the next one."""
    param = nn.Parameter(tensors(0)[0])
    still = Windows(window=WINDOW, lr=0.0, mean_speed=1.0)
    config = Factors(alpha_start=0.1, update_every=1)
    optimizer = optimizer_of([param], config, still)
    run(optimizer, [param], 2 * WINDOW)
    other, alone = copy.deepcopy((param, optimizer))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "name": "late"})
    run(optimizer, [param], WINDOW + 1, 2 * WINDOW)
    run(alone, [other], 1, 2 * WINDOW)
    first = alone.state[other]["displacement"].clone()
    run(alone, [other], WINDOW, 2 * WINDOW + 1)
    assert torch.equal(param, other)
    both = first + alone.state[other]["displacement"]
    torch.testing.assert_close(optimizer.state[param]["displacement"], both)


def test_half_precision_and_complex_parameters():
    params = [
        nn.Parameter(torch.randn(6, dtype=torch.bfloat16)),
        nn.Parameter(torch.randn(4, dtype=torch.complex64)),
    ]
    optimizer = optimizer_of(params)
    for step in range(5 * WINDOW):
        torch.manual_seed(step)
        for p in params:
            p.grad = p.detach() + torch.randn_like(p)
        optimizer.step()
    assert optimizer.modulation.alpha.isfinite().all()
    assert (optimizer.modulation.alpha != 1).all()


def test_windows_in_a_real_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = MetaAdamW(
        fine_grained_groups(model),
        lr=1e-4,
        modulator=ATTENTION,
        learning=Windows(window=10, mean_speed=1.0),
    )
    x = torch.randn(512, 8)
    y = x.square().sum(1, keepdim=True)
    for _ in range(100):
        rows = torch.randint(512, (32,))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
    # A rate far too low is seen to be too low by every group.
    assert (optimizer.modulation.alpha > 2).all()


@pytest.mark.parametrize("outputs", [3, 8])
def test_gauss_newton_does_what_it_is_asked_to(outputs):
    torch.manual_seed(outputs)
    weight = torch.randn(outputs, 5, dtype=torch.float64)
    phi, unused = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (5, 2))
    change = torch.randn(outputs, dtype=torch.float64)
    step, nothing = gauss_newton(weight @ phi, change, [phi, unused])
    square = weight @ weight.T
    mu = DAMPING * square.diagonal().mean()
    damped = square + mu * torch.eye(outputs, dtype=mu.dtype)
    expected = weight.T @ torch.linalg.solve(damped, change)
    torch.testing.assert_close(step, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(nothing, torch.zeros_like(unused))
    # It never does more than it is asked to.
    assert (weight @ step).norm() <= change.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha_start": 0.4}, r"alpha_start must be in \[0.5, 1.5\], got 0.4"),
        ({"alpha_start": 0.5}, r"alpha_start must be within \(0.5, 1.5\), got 0.5"),
        ({"alpha_start": 0.75, "init": "xavier"}, "alpha_start must be 1 with init='xavier'"),
        ({"mean_preserving": True}, "mean_preserving=True needs scale='log'"),
        (
            {"mean_preserving": True, "scale": "log", "alpha_start": 0.75},
            "mean_preserving=True needs scale='log' and an alpha_start .*, got .*0.75",
        ),
        ({"scale": "logarithmic"}, "scale must be one of"),
    ],
)
def test_bad_factors_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Attention(**arguments)


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("layers", [0, 2])
def test_alpha_starts_where_it_is_told(scale, layers):
    config = modulator_of(scale=scale, layers=layers, alpha_start=0.75)
    optimizer = MetaAdamW(
        [torch.ones(3, requires_grad=True)], modulator=config, learning="lookahead"
    )
    alpha = optimizer.modulator(torch.randn(1, len(optimizer.feature_names))).alpha
    assert alpha.item() == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_each_group_starts_where_its_name_says(scale):
    config = Factors(
        scale=scale, alpha_start={"g0": 0.75, "g2": 1.25, "x": 0.9}, alpha_range=1.0, update_every=1
    )
    assert replace(config) == config
    assert hash(config) == hash(Factors(**json.loads(json.dumps(asdict(config)))))
    optimizer = optimizer_of([nn.Parameter(p) for p in tensors(0)], config)
    optimizer.add_param_group({"params": nn.Parameter(torch.ones(1)), "name": "x"})
    run(optimizer, optimizer._params()[:3], 1)
    found = optimizer.modulation.alpha.detach()
    expected = torch.tensor([0.75, 1.0, 1.25, 0.9], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_start_may_be_a_number_of_numpy():
    config = Factors(alpha_start=np.float32(0.75), alpha_range=1.0, scale="linear", update_every=1)
    assert (
        config.raw_start()
        == Factors(alpha_start=0.75, alpha_range=1.0, scale="linear", update_every=1).raw_start()
    )


@pytest.mark.parametrize("key", ["window_start", "displacement"])
def test_a_damaged_window_is_refused(key):
    params = [nn.Parameter(p) for p in tensors(0)]
    optimizer = optimizer_of(params)
    run(optimizer, params, WINDOW + 1)
    state = optimizer.state_dict()
    state["state"][0][key] = torch.ones(3)
    other = optimizer_of(params)
    with pytest.raises(ValueError, match=f"{key} must be a tensor of shape .*got \\(3,\\)"):
        other.load_state_dict(state)
    assert not other.state


def test_starts_by_name_belong_to_groups_without_attention():
    with pytest.raises(TypeError, match=r"alpha_start must be a number in \[0.5, 1.5\], got"):
        Attention(layers=1, alpha_start={"g0": 0.75})
    with pytest.raises(ValueError, match=r"alpha_start\['g0'\] must be in \[0.5, 1.5\], got 3"):
        Factors(alpha_start={"g0": 3}, alpha_range=1.0, scale="linear", update_every=1)
    with pytest.raises(TypeError, match=r"alpha_start\['g0'\] must be a number"):
        Factors(alpha_start={"g0": "high"}, alpha_range=1.0, scale="linear", update_every=1)


@pytest.mark.parametrize("layers", [0, 1])
def test_the_mean_stays_where_it_is(layers):
    modulator, meta = (
        modulator_of(
            features="scale_free", scale="log", alpha_range=4.0, layers=layers, mean_preserving=True
        ),
        Windows(),
    )
    params = [nn.Parameter(p) for p in tensors(0)]
    optimizer = optimizer_of(params, modulator, replace(meta, window=WINDOW))
    for step in range(60):
        run(optimizer, params, 1, step)
        alpha = optimizer.modulation.alpha
        torch.testing.assert_close(alpha.log().mean(), alpha.new_zeros(()), rtol=0, atol=1e-14)
    assert alpha.log().abs().max() > 0.1
    alone = MetaAdamW(params, modulator=modulator, learning=replace(meta, window=WINDOW))
    for step in range(20):
        run(alone, params, 1, step)
    assert (alone.modulation.alpha == 1).all()  # of a single group


def test_what_a_schedule_takes_away_is_not_given_back():
    """Where going on always pays, α rises with a constant rate, and the less, the lower it gets."""

    def mean_log_alpha(schedule, steps=60, saved=None):
        params = [nn.Parameter(100 * p) for p in tensors(0)]
        optimizer = optimizer_of(params)
        for step in range(steps):
            if step == saved:
                state = optimizer.state_dict()
                optimizer = optimizer_of(params)
                optimizer.load_state_dict(state)
            for p in params:
                p.grad = p.detach().clone()
            for group in optimizer.param_groups:
                group["lr"] = 1e-4 * schedule(step)
            optimizer.step()
        return optimizer.modulation.alpha.log().mean().item()

    constant = mean_log_alpha(lambda step: 1.0)
    early = mean_log_alpha(lambda step: 1.0, steps=10)
    assert constant - early > 0.4
    assert mean_log_alpha(lambda step: 0.1) == pytest.approx(constant, rel=0.05)  # at its highest
    assert mean_log_alpha(lambda step: (step + 1) / 60) == pytest.approx(constant, rel=0.05)
    falling = mean_log_alpha(lambda step: 1.0 if step < 10 else 0.1)
    assert early < falling < early + 0.1 * (constant - early)
    # The checkpoint knows how high the rate has been.
    assert mean_log_alpha(lambda step: 1.0 if step < 10 else 0.1, saved=20) == falling


@pytest.mark.parametrize("speed", [0.0, 0.5, 1.0])
def test_a_group_without_gradients_has_no_part_in_the_mean(speed):
    params = [nn.Parameter(p) for p in tensors(0)]
    idle = nn.Parameter(torch.ones(3, dtype=torch.float64))
    meta = replace(META, mean_speed=speed)
    alone, together = (
        optimizer_of(params, meta=meta),
        optimizer_of([*params, idle], meta=meta),
    )
    for optimizer in (alone, together):
        start = [p.detach().clone() for p in params]
        run(optimizer, params, 60)
        for p, q in zip(params, start, strict=True):
            p.data.copy_(q)
    alpha = together.modulation.alpha
    assert alpha[-1] == 1
    assert torch.equal(alpha[:-1], alone.modulation.alpha)
    assert (alpha[:-1] - 1).abs().min() > 1e-3
