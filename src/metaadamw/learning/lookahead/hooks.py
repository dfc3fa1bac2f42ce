"""Hooks of the backward pass rest during a meta-update: its gradients are not the training's."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor, nn

__all__ = ["RestingHooks"]

_OF_TENSORS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_OF_MODULES = ("_backward_hooks", "_backward_pre_hooks")


class RestingHooks:
    """Backward hooks set aside, to be put back with their order and their handles.

    Forward hooks stay: a loss may need what they collect. Torch and the handles hold on to the very
    mappings in which the hooks are, so these are emptied and filled again.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Any, str, MutableMapping[int, Any] | None, dict[int, Any]]] = []
        self._kinds: list[tuple[nn.Module, bool | None]] = []

    def rest(self, owner: Tensor | nn.Module) -> None:
        """Set the hooks of a leaf tensor, or those of a module itself, aside."""
        if isinstance(owner, nn.Module):
            self._kinds.append((owner, getattr(owner, "_is_full_backward_hook", None)))
        for name in _OF_TENSORS if isinstance(owner, Tensor) else _OF_MODULES:
            hooks = getattr(owner, name, None)
            self._kept.append((owner, name, hooks, dict(hooks or {})))
            if hooks:
                hooks.clear()

    def restore(self) -> None:
        """Put them back, and take away what has been added meanwhile."""
        for owner, name, hooks, kept in reversed(self._kept):
            now = getattr(owner, name, None)
            if now is not None and now is not hooks:
                now.clear()
            if hooks is not None:
                hooks.clear()
                hooks.update(kept)
        for module, full in self._kinds:
            if getattr(module, "_is_full_backward_hook", None) is not full:
                module._is_full_backward_hook = full
