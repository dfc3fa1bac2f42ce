"""Every module that runs, as it was: flags, buffers, gradients and hooks, whoever owns it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from metaadamw.learning.lookahead.hooks import RestingHooks
from metaadamw.learning.lookahead.switches import Switch

__all__ = ["RunModules"]

_watcher = threading.local()
_MISSING: Any = object()


@contextmanager
def _watched_calls() -> Iterator[None]:
    """Tell the thread's ``RunModules`` of every call of a module.

    Torch's global hooks would do, but a compiled model warns of them and compiles itself again.
    """
    call: Any = nn.Module.__call__

    def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        modules: RunModules | None = getattr(_watcher, "modules", None)
        if modules is None or modules.owns(self):
            return call(self, *args, **kwargs)
        with modules.running(self):
            return call(self, *args, **kwargs)

    cast(Any, nn.Module).__call__ = watched
    try:
        yield
    finally:
        cast(Any, nn.Module).__call__ = call


_watching_calls = Switch(_watched_calls)


def _once(buffer: Tensor) -> Tensor:
    """Of an expanded tensor every entry once: the others lie in the same place."""
    if buffer.layout != torch.strided or 0 not in buffer.stride():
        return buffer
    sizes = zip(buffer.shape, buffer.stride(), strict=True)
    return buffer.as_strided([n if stride else min(n, 1) for n, stride in sizes], buffer.stride())


def _copy(buffer: Tensor) -> Tensor | None:
    if buffer.is_inference():  # nobody can write to these, not even to put back
        return None
    return _once(buffer.detach()).clone()


class RunModules:
    """Flags, buffers, gradients and hooks of modules, to be put back.

    Of a model given to ``keep`` everything; of another module what its calls change, from the first
    one on.
    """

    def __init__(self) -> None:
        self._training: dict[int, tuple[nn.Module, bool]] = {}
        self._params: dict[int, tuple[Tensor, Tensor | None, bool]] = {}
        self._values: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._owned: dict[int, tuple[nn.Module, dict[str, Tensor | None]]] = {}
        # What a call of another module has left in place of a buffer, and what was there. Whole
        # tables would not do: ``functional_call`` exchanges buffers around a call.
        self._left: dict[tuple[int, str], tuple[nn.Module, dict[int, tuple[Any, Any]]]] = {}
        self._hooks = RestingHooks()
        self._outer: RunModules | None = None

    def keep(self, model: nn.Module) -> None:
        """Note everything of a model, then set its gradients and hooks aside."""
        modules = list(model.modules())
        for module in modules:  # what can fail comes first
            self._keep_buffers(module)
        for module in modules:
            self._owned[id(module)] = module, dict(module._buffers.items())
        self._note(modules)

    def keep_params(self, params: Iterable[Tensor]) -> None:
        """The same of parameters."""
        for param in params:
            if id(param) not in self._params:
                self._params[id(param)] = param, param.grad, param.requires_grad
                param.grad = None
                self._hooks.rest(param)

    def _keep_buffers(self, module: nn.Module) -> None:
        for buffer in module._buffers.values():
            if _is_plain(buffer) and id(buffer) not in self._values:
                self._values[id(buffer)] = buffer, _copy(buffer)

    def _note(self, modules: Iterable[nn.Module]) -> None:
        for module in modules:
            if id(module) not in self._training:
                self._training[id(module)] = module, module.training
                self._hooks.rest(module)
                # ``functional_call`` may put any tensor there.
                self.keep_params(
                    p for p in module._parameters.values() if _is_plain(p) and p.is_leaf
                )

    def owns(self, module: nn.Module) -> bool:
        """Whether everything of it is kept."""
        return id(module) in self._owned and (self._outer is None or self._outer.owns(module))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep whatever module runs inside the block in this thread."""
        self._outer = getattr(_watcher, "modules", None)
        with _watching_calls():
            _watcher.modules = self
            try:
                yield
            finally:
                _watcher.modules = self._outer

    @contextmanager
    def running(self, module: nn.Module) -> Iterator[None]:
        """A call of a module that is not ours."""
        if self._outer is not None and not self._outer.owns(module):
            with self._outer.running(module):
                yield from self._running(module)
        else:
            yield from self._running(module)

    def _running(self, module: nn.Module) -> Iterator[None]:
        if id(module) not in self._training:
            inner = list(module.modules())
            for each in inner:
                self._keep_buffers(each)
            self._note(inner)
        else:
            self._keep_buffers(module)
        before = dict(module._buffers.items())
        try:
            yield
        finally:
            after = dict(module._buffers.items())
            for name in before.keys() | after.keys():
                was, now = before.get(name, _MISSING), after.get(name, _MISSING)
                if was is not now:
                    _, left = self._left.setdefault((id(module), name), (module, {}))
                    left[id(now)] = now, left.get(id(was), (was, was))[1]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        self._hooks.restore()
        for module, training in self._training.values():
            module.training = training
        for param, grad, requires_grad in self._params.values():
            param.requires_grad_(requires_grad)
            param.grad = grad
        for module, buffers in self._owned.values():
            if not isinstance(module, torch.jit.ScriptModule):  # those are fixed
                # Replaced, new or deleted ones as well, and their order.
                module._buffers.clear()
                module._buffers.update(buffers)
        for (_, name), (module, left) in self._left.items():
            now = module._buffers.get(name, _MISSING)
            first = left.get(id(now), (now, now))[1]
            if first is now:
                continue
            if first is _MISSING:
                del module._buffers[name]
            else:
                module._buffers[name] = first
        # Last what can fail: a buffer that the loss has given another size.
        for buffer, value in self._values.values():
            if value is not None:
                _once(buffer).copy_(value)


def _is_plain(tensor: Tensor | None) -> TypeGuard[Tensor]:
    """Whether there is a tensor, and none that a transform of ``torch.func`` has put there."""
    return tensor is not None and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
