"""Eqs. 1–4 for all groups in one pass over the memory of a CPU, to the last bit as torch has them.

Torch goes over it once as well in its fused kernel, a dozen times in the operations that it takes
by default. What either leaves to its compiler, which product enters which sum unrounded, is written
out in ``adamw.c`` for the builds that people have. On any other, and for any tensor that is not
plain memory, torch does the work.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from metaadamw.kernels.cpu import addresses, in_memory, library, shares_threads
from metaadamw.state.token import Token

__all__ = ["Written", "adamw_in_one_pass", "rounding", "samples", "torch_fused_adamw"]

Rule = tuple[float, float, float, float, float]
"""lr, weight_decay, β₁, β₂ and ε of a tensor."""


class _Rounding(ctypes.Structure):
    _fields_ = (("lanes", ctypes.c_int64), ("roots", ctypes.c_void_p))


class Written(NamedTuple):
    """What a step knows of the tensors it has written.

    Attributes:
        positions: where they stand among all, in the order of the groups.
        params: θ.
        exp_avg_sqs: v.
        squares: ‖θ‖² and ‖v‖² of each, [n, 2], float64.
        samples: the ``samples`` of θ.
        dtype: its precision.
    """

    positions: list[int]
    params: list[Tensor]
    exp_avg_sqs: list[Tensor]
    squares: Tensor
    samples: list[int]
    dtype: torch.dtype


def torch_fused_adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    rule: tuple[float | Tensor, float, float, float, float],
) -> None:
    """The kernel of torch; counts no steps."""
    lr, weight_decay, beta1, beta2, eps = rule
    torch._fused_adamw_(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=None,
    )


def adamw_in_one_pass(
    path: str,
    tokens: Sequence[Token],
    rates: Sequence[float],
    decays: Sequence[float],
    *,
    squares: bool = False,
) -> tuple[bool, Written | None]:
    r"""One step of all tensors that have a gradient.

    Args:
        path: whose bits, those of torch's kernel, "fused", or of its operations, "plain".
        tokens: the groups' tensors.
        rates: :math:`\eta\alpha_g`, one for each group.
        decays: :math:`\beta_g\lambda`, likewise.
        squares: also tell the squared norms of what is written.

    Returns:
        Whether it was done; if not, nothing has changed. And what was asked for.
    """
    state = _State([], [], [], [], [], [], [])
    start = 0
    for token, lr, weight_decay in zip(tokens, rates, decays, strict=True):
        rule = (lr, weight_decay, *token.group["betas"], token.group["eps"])
        for i, grad in enumerate(token.grads):
            m, v, step = token.exp_avgs[i], token.exp_avg_sqs[i], token.steps[i]
            if grad is None or m is None or v is None or step is None:
                continue
            state.positions.append(start + i)
            state.params.append(token.params[i])
            state.grads.append(grad)
            state.exp_avgs.append(m)
            state.exp_avg_sqs.append(v)
            state.steps.append(step)
            state.rules.append(rule)
        start += len(token.grads)
    one_thread = torch.get_num_threads() > 1 and not shares_threads()
    if one_thread or not state.params:
        return False, None
    if not state.plain:
        return False, None
    by = rounding(path, state.params[0].dtype)
    if by is None or state.overlaps:
        return False, None
    if not squares:
        state.update(by)
        return True, None
    taken = torch.empty(len(state.params), 2, dtype=torch.float64, device="cpu")
    marks = (ctypes.c_uint64 * len(state.params))()
    state.update(by, taken, marks)
    dtype = state.params[0].dtype
    written = (state.positions, state.params, state.exp_avg_sqs, taken, list(marks), dtype)
    return True, Written(*written)


class _State(NamedTuple):
    """The tensors of a step, index by index."""

    positions: list[int]
    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    rules: list[Rule]

    @property
    def plain(self) -> bool:
        """Whether all are nothing but memory, and of one precision.

        Raises:
            ValueError: a gradient or moment of another size than its parameter.
        """
        dtype = self.params[0].dtype
        for tensors in zip(self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, strict=True):
            size = tensors[0].numel()
            for t in tensors:
                if t.numel() != size:  # torch would read on
                    raise ValueError(
                        f"gradient and moments must have the shape of their parameter, "
                        f"{tuple(tensors[0].shape)}, got {tuple(t.shape)}"
                    )
                if t.dtype is not dtype or not in_memory(t):
                    return False
        return all(step.dtype is torch.float32 and in_memory(step) for step in self.steps)

    @property
    def overlaps(self) -> bool:
        """Whether some of the memory that is written belongs to two tensors.

        Threads would race for it, and a for-loop's bits depend on who comes first.
        """
        columns = (self.params, self.exp_avgs, self.exp_avg_sqs, self.steps)
        written = sorted(
            (t.data_ptr(), t.data_ptr() + t.nbytes)
            for column in columns
            for t in column
            if t.nbytes
        )
        ends = [end for _, end in written]
        if any(end > begin for end, (begin, _) in zip(ends, written[1:], strict=False)):
            return True
        for grad in self.grads:  # the first written tensor that ends after it begins
            at = bisect.bisect_right(ends, grad.data_ptr())
            if at < len(written) and written[at][0] < grad.data_ptr() + grad.nbytes:
                return True
        return False

    def update(
        self,
        by: _Rounding,
        squares: Tensor | None = None,
        marks: ctypes.Array[ctypes.c_uint64] | None = None,
    ) -> None:
        """Eqs. 1–4.

        Raises:
            MemoryError: there is none; nothing has changed.
        """
        columns = (self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, self.steps)
        count = len(self.params)
        failed = library(self.params[0].dtype).adamw(  # type: ignore[union-attr]  # its rounding is known
            ctypes.c_int64(count),
            (ctypes.c_int64 * count)(*[p.numel() for p in self.params]),
            *map(addresses, columns),
            (ctypes.c_double * (5 * count))(*itertools.chain.from_iterable(self.rules)),
            ctypes.byref(by),
            ctypes.c_void_p(None if squares is None else squares.data_ptr()),
            marks,
        )
        if failed:
            raise MemoryError("no memory for the step")
        torch.autograd.graph.increment_version(
            [*self.params, *self.exp_avgs, *self.exp_avg_sqs, *self.steps]
        )


def samples(params: Sequence[Tensor], dtype: torch.dtype) -> list[int] | None:
    """A number for each tensor, another where its address or one of a few entries is another.

    Args:
        params: what a step has written.
        dtype: in which precision; None if they have another by now.
    """
    kernels, count = library(dtype), len(params)
    if kernels is None or not all(t.dtype is dtype and in_memory(t) for t in params):
        return None
    result = (ctypes.c_uint64 * count)()
    if count:
        kernels.samples(
            ctypes.c_int64(count),
            (ctypes.c_int64 * count)(*[t.numel() for t in params]),
            addresses(params),
            result,
        )
    return list(result)


@functools.cache
def rounding(path: str, dtype: torch.dtype) -> _Rounding | None:
    """How torch rounds on a path; None if otherwise than the kernel here can.

    Found by trying, in a few milliseconds, with numbers that tell the roundings apart.
    """
    if library(dtype) is None:
        return None
    if path == "fused":
        sizes = (32, 64, 16)  # of a vector, in bytes
        candidates = [_Rounding(size // dtype.itemsize, None) for size in sizes]
    else:
        candidates = [_Rounding(0, _roots(dtype)), _Rounding(0, None)]
    for by in candidates:
        try:
            if all(_same_bits(path, rule, state, by) for rule, state in _trials(dtype)):
                return by
        except (RuntimeError, TypeError):  # an older torch, which has not all that is needed
            return None
    return None


def _roots(dtype: torch.dtype) -> int | None:
    """Where the function lies that torch takes its square roots from, if MKL is in it."""
    try:
        libtorch = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        function = libtorch.vmdSqrt if dtype == torch.float64 else libtorch.vmsSqrt
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


def _trials(dtype: torch.dtype) -> Iterator[tuple[Rule, tuple[Tensor, ...]]]:
    generator = torch.Generator().manual_seed(0)
    rules: list[Rule] = [
        (1e-3, 0.0, 0.9, 0.999, 1e-8),
        (0.02, 0.1, 0.4, 0.95, 1e-3),
        # 1 − lr · weight_decay of these depends on whether the product is rounded.
        *((0.1 * k + 0.0123, 0.0987 * k, 0.9, 0.99, 1e-8) for k in range(1, 60)),
    ]
    for number, rule in enumerate(rules):
        for size in (1 + number % 40, 1003) if number < 3 else (1 + number % 40,):
            numbers = torch.randn(4, size, generator=generator, device="cpu").to(dtype)
            param, grad, exp_avg, exp_avg_sq = numbers
            state = (param, grad, 0.1 * exp_avg, 0.01 * exp_avg_sq.square())
            step = torch.tensor(float(number), device="cpu")
            yield rule, (*(t.clone() for t in state), step)


def _same_bits(path: str, rule: Rule, state: tuple[Tensor, ...], by: _Rounding) -> bool:
    lr, weight_decay, beta1, beta2, eps = rule
    param, grad, exp_avg, exp_avg_sq, step = state
    theirs = [t.clone() for t in state]
    params, grads, exp_avgs, exp_avg_sqs, steps = ([t] for t in theirs)
    torch_adamw(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        foreach=False,
        fused=path == "fused",
        amsgrad=False,
        maximize=False,
        lr=lr,
        weight_decay=weight_decay,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
    )
    version = param._version
    _State([0], [param], [grad], [exp_avg], [exp_avg_sq], [step], [rule]).update(by)
    return param._version > version and all(map(torch.equal, state, theirs))
