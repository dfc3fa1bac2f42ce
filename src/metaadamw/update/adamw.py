r"""Eqs. 1–4 as functions of tensors: plain (the truth), foreach and fused.

Each takes the tensors of one group and two numbers, ``lr`` = :math:`\eta\alpha_g` and
``weight_decay`` =
:math:`\beta_g\lambda`, and updates parameters, moments and step counters in place. With
:math:`\alpha_g = \beta_g = 1` each is bit-identical to the path of ``torch.optim.AdamW`` of the
same name. The two numbers are floats, or 0-d tensors on the parameters' device: then nothing is
read back to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from metaadamw.state.master_weights import float32_values, write_back
from metaadamw.state.token import Token
from metaadamw.update.one_pass import Written, adamw_in_one_pass, torch_fused_adamw

__all__ = [
    "adamw",
    "adamw_foreach",
    "adamw_fused",
    "adamw_plain",
    "choose_path",
    "modulated_adamw",
    "update_direction",
]

Number = float | Tensor


def _on_device(value: Number) -> bool:
    """Whether a number must stay a tensor: reading it would stall an accelerator."""
    return isinstance(value, Tensor) and not value.is_cpu


def _decays(weight_decay: Number) -> bool:
    return isinstance(weight_decay, Tensor) or weight_decay != 0


def update_direction(
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: float | Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    eps_inside_sqrt: bool,
) -> Tensor:
    r"""Eqs. 3–4 without decay: the direction :math:`\hat u`.

    .. math:: \hat u = \hat m / (\sqrt{\hat v} + \epsilon)

    or, as printed, :math:`\hat m / \sqrt{\hat v + \epsilon}`.
    """
    bias_correction1, bias_correction2 = 1 - betas[0] ** step, 1 - betas[1] ** step
    # The corrections are moved into the denominator, the one temporary.
    if eps_inside_sqrt:
        denom = exp_avg_sq.div(bias_correction2).add_(eps).sqrt_().mul_(bias_correction1)
    else:
        denom = exp_avg_sq.sqrt().mul_(bias_correction1 / bias_correction2**0.5)
        denom.add_(eps * bias_correction1)
    return torch.div(exp_avg, denom, out=denom)


def adamw_plain(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: Number,
    weight_decay: Number,
    betas: tuple[float, float],
    eps: float,
    eps_inside_sqrt: bool = False,
    capturable: bool = False,
) -> None:
    r"""Eqs. 1–4, one tensor at a time.

    .. math:: \theta_t = \theta_{t-1} - \eta\alpha_g
              \left(\frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} + \beta_g\lambda\theta_{t-1}\right)

    Args:
        params: parameters θ.
        grads: gradients.
        exp_avgs: first moments m.
        exp_avg_sqs: second moments v.
        steps: step counters t, 0-d float tensors.
        lr: :math:`\eta\alpha_g`.
        weight_decay: :math:`\beta_g\lambda`.
        betas: decay rates of the moments.
        eps: ε.
        eps_inside_sqrt: the printed Eq. 4, :math:`\sqrt{\hat v_t + \epsilon}`.
        capturable: keep the step counters on the device.

    Source: Zhao & Liu (2026), Eqs. 1–4; rounding as in ``torch.optim.adam._single_tensor_adam``.
    """
    beta1, beta2 = betas
    for param, grad, exp_avg, exp_avg_sq, step_t in zip(
        params, grads, exp_avgs, exp_avg_sqs, steps, strict=True
    ):
        step_t += 1
        step = step_t if capturable else step_t.item()

        if _decays(weight_decay):
            param.mul_(1 - lr * weight_decay)
        exp_avg.lerp_(grad, 1 - beta1)  # Eq. 1
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)  # Eq. 2

        step_size = lr / (1 - beta1**step)  # Eq. 3
        bias_correction2 = 1 - beta2**step
        if eps_inside_sqrt:
            denom = (exp_avg_sq / bias_correction2).add_(eps).sqrt_()
        else:
            denom = (exp_avg_sq.sqrt() / bias_correction2**0.5).add_(eps)
        if capturable or _on_device(step_size):
            param.addcdiv_(exp_avg, denom.div_(-step_size))  # Eq. 4
        else:
            param.addcdiv_(exp_avg, denom, value=-step_size)  # type: ignore[arg-type]


def adamw_foreach(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: Number,
    weight_decay: Number,
    betas: tuple[float, float],
    eps: float,
    eps_inside_sqrt: bool = False,
    capturable: bool = False,
) -> None:
    """Eqs. 1–4 for all tensors of a group at once; arguments as ``adamw_plain``.

    Source: rounding as in ``torch.optim.adam._multi_tensor_adam``.
    """
    if not params:
        return
    beta1, beta2 = betas
    if steps[0].is_cpu and not capturable:
        # A wrapped scalar: adding the number 1 would wrap it anew for every counter.
        torch._foreach_add_(steps, torch.tensor(1.0, device="cpu"), alpha=1.0)
    else:
        torch._foreach_add_(steps, 1)

    if _decays(weight_decay):
        torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)  # Eq. 1
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)  # Eq. 2

    if capturable:
        bias_correction1 = torch._foreach_sub(torch._foreach_pow(beta1, steps), 1)
        bias_correction2 = torch._foreach_neg(
            torch._foreach_sub(torch._foreach_pow(beta2, steps), 1)
        )
        if eps_inside_sqrt:
            denom = torch._foreach_div(exp_avg_sqs, bias_correction2)
            torch._foreach_add_(denom, eps)
            torch._foreach_sqrt_(denom)
        else:
            denom = torch._foreach_sqrt(exp_avg_sqs)
            torch._foreach_sqrt_(bias_correction2)
            torch._foreach_div_(denom, bias_correction2)
            torch._foreach_add_(denom, eps)
        # -lr / (1 - beta1^t), in the order of operations of the capturable path of torch
        torch._foreach_div_(bias_correction1, lr)
        torch._foreach_reciprocal_(bias_correction1)
        torch._foreach_div_(denom, bias_correction1)
        torch._foreach_addcdiv_(params, exp_avgs, denom)  # Eq. 4
        return

    corrections1 = [1 - beta1 ** step.item() for step in steps]
    corrections2 = [1 - beta2 ** step.item() for step in steps]
    if eps_inside_sqrt:
        denom = torch._foreach_div(exp_avg_sqs, corrections2)
        torch._foreach_add_(denom, eps)
        torch._foreach_sqrt_(denom)
    else:
        denom = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_div_(denom, [c**0.5 for c in corrections2])
        torch._foreach_add_(denom, eps)
    if _on_device(lr):
        torch._foreach_mul_(denom, [-c for c in corrections1])
        torch._foreach_div_(denom, lr)
        torch._foreach_addcdiv_(params, exp_avgs, denom)  # Eq. 4
    else:
        step_sizes = [float(lr) / c * -1 for c in corrections1]
        torch._foreach_addcdiv_(params, exp_avgs, denom, step_sizes)  # Eq. 4


def adamw_fused(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: Number,
    weight_decay: Number,
    betas: tuple[float, float],
    eps: float,
    eps_inside_sqrt: bool = False,
    capturable: bool = False,
) -> None:
    """Eqs. 1–4 in one kernel of torch; arguments as ``adamw_plain``.

    The kernel takes a tensor as learning rate but only a float as weight decay, so a decay that
    lives on the device is applied in a pass of its own. It walks over memory whatever the strides
    say (``torch.optim.AdamW`` lets it): tensors in different orders go the plain way.

    Raises:
        ValueError: ``eps_inside_sqrt``, which the kernel does not know.
    """
    if eps_inside_sqrt:
        raise ValueError("eps_inside_sqrt=True is not available with fused=True")
    if not params:
        return
    columns = zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)
    if not all(_in_one_order(*tensors) for tensors in columns):
        adamw_plain(
            *(params, grads, exp_avgs, exp_avg_sqs, steps),
            lr=lr,
            weight_decay=weight_decay,
            betas=betas,
            eps=eps,
            capturable=capturable or not steps[0].is_cpu,
        )
        return
    torch._foreach_add_(steps, 1)
    if isinstance(lr, Tensor):
        lr = lr.float()  # all that the kernel reads
    if isinstance(weight_decay, Tensor):
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        weight_decay = 0.0
    torch_fused_adamw(params, grads, exp_avgs, exp_avg_sqs, steps, (lr, weight_decay, *betas, eps))


def _in_one_order(param: Tensor, *others: Tensor) -> bool:
    """Whether entry after entry in memory is the same entry of all, and nothing lies between."""
    strides = param.stride()
    if any(t.stride() != strides for t in others):
        return False
    # Whatever is like it has its strides only if it is dense.
    return param.is_contiguous() or torch.empty_like(param, device="meta").stride() == strides


_FOREACH_DEVICES = ("cuda", "xpu", "mtia")
_PATHS = {"plain": adamw_plain, "foreach": adamw_foreach, "fused": adamw_fused}


def adamw(
    token: Token,
    path: str,
    *,
    lr: Number,
    weight_decay: Number,
    eps_inside_sqrt: bool = False,
    capturable: bool = False,
) -> None:
    r"""Eqs. 1–4 for the tensors of one group that have a gradient, by one of the paths.

    Tensors of one device and precision go together. Half-precision parameters are updated in the
    precision of their moments, float32, and rounded once; their master weights, where they have
    some, are not rounded at all.

    Args:
        token: the group's tensors.
        path: "plain", "foreach" or "fused".
        lr: :math:`\eta\alpha_g`.
        weight_decay: :math:`\beta_g\lambda`.
        eps_inside_sqrt: the printed form of Eq. 4.
        capturable: keep the step counters on the device.
    """
    buckets: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, (param, grad) in enumerate(zip(token.params, token.grads, strict=True)):
        if grad is not None:
            buckets.setdefault((param.device, param.dtype), []).append(i)
    for (device, dtype), indices in buckets.items():
        params, grads, exp_avgs, exp_avg_sqs, steps = (
            [t for i in indices if (t := tensors[i]) is not None]
            for tensors in (
                token.params,
                token.grads,
                token.exp_avgs,
                token.exp_avg_sqs,
                token.steps,
            )
        )
        targets = params
        half = dtype in (torch.bfloat16, torch.float16)
        low_bits = [token.low_bits[i] for i in indices]
        if half:
            params, grads = float32_values(params, low_bits), [g.float() for g in grads]
        _PATHS[path](
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            steps,
            lr=_near(lr, device),
            weight_decay=_near(weight_decay, device),
            betas=token.group["betas"],
            eps=token.group["eps"],
            eps_inside_sqrt=eps_inside_sqrt,
            capturable=capturable,
        )
        if half:
            write_back(targets, low_bits, params)


def choose_path(params: Sequence[Tensor], *, foreach: bool | None, fused: bool | None) -> str:
    """The path that the flags ask for; undecided, the one that ``torch.optim.AdamW`` would take."""
    if fused:
        return "fused"
    if foreach is None:
        foreach = all(p.device.type in _FOREACH_DEVICES for p in params)
    return "foreach" if foreach else "plain"


def modulated_adamw(
    tokens: Sequence[Token],
    alpha: Tensor,
    beta: Tensor,
    path: str,
    *,
    on_host: bool,
    eps_inside_sqrt: bool,
    capturable: bool,
    decay_corrected_at: int | None,
    squares: bool = False,
) -> tuple[list[Number], list[Number], Written | None]:
    r"""Lines 4–7 of Algorithm 1: every group with its own rate and weight decay.

    Args:
        tokens: the groups' tensors.
        alpha: α, [G].
        beta: β, [G].
        path: "plain", "foreach" or "fused".
        on_host: read α and β as numbers, which is free on the CPU; else they stay tensors.
        eps_inside_sqrt: the printed form of Eq. 4.
        capturable: keep the step counters on the device.
        decay_corrected_at: divide the weight decay by :math:`1 - \beta_1^t` of this t.
        squares: take the squared norms of what is written, where that is free.

    Returns:
        The rates and decays used, one for each group; and the squares, or None.
    """
    alphas = alpha.tolist() if on_host else alpha.unbind()
    betas = beta.tolist() if on_host else beta.unbind()
    rates: list[Number] = []
    decays: list[Number] = []
    for token, a, b in zip(tokens, alphas, betas, strict=True):
        lr, weight_decay = token.group["lr"], token.group["weight_decay"]
        if isinstance(lr, Tensor):
            # foreach and fused take a number from the CPU
            lr = lr.item() if on_host and path != "plain" else lr.reshape(())
            if isinstance(a, Tensor):
                lr = _near(lr, a.device)
        if decay_corrected_at is not None:
            weight_decay = weight_decay / (1 - token.group["betas"][0] ** decay_corrected_at)
        rates.append(lr * a)
        decays.append(weight_decay * b if weight_decay else 0.0)
    numbers = all(isinstance(number, float) for number in (*rates, *decays))
    if on_host and numbers and path in ("plain", "fused") and not eps_inside_sqrt:
        columns = (cast("list[float]", values) for values in (rates, decays))
        done, written = adamw_in_one_pass(path, tokens, *columns, squares=squares)
        if done:
            return rates, decays, written
    for token, lr, weight_decay in zip(tokens, rates, decays, strict=True):
        adamw(
            token,
            path,
            lr=lr,
            weight_decay=weight_decay,
            eps_inside_sqrt=eps_inside_sqrt,
            capturable=capturable,
        )
    return rates, decays, None


def _near(value: Number, device: torch.device) -> Number:
    """A number that lives on another accelerator, brought to this one."""
    if not isinstance(value, Tensor) or value.is_cpu:
        return value
    return value.to(device, non_blocking=device.type != "cpu")  # the host must wait for its copy
