"""Runs a frozen vision tower without a graph, whatever asks for one.

Autograd keeps nothing of a part whose weights and inputs need no gradient. But `enable_input_require_grads`, which peft
calls where activations are checkpointed, makes the outputs of every embedding need one, those of a vision tower's
patches too, and a whole frozen tower would then be kept, and walked back through, for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


@contextmanager
def frozen_without_graph(tower: nn.Module, projector: nn.Module) -> Iterator[None]:
    """Within, the tower runs under `no_grad`, up to its projector where it contains it.

    Only if all of that is frozen: nothing is changed for a tower that trains, as a whole or in part.
    """
    own = {id(parameter) for parameter in projector.parameters()}
    modes: list[bool] = []

    def enter(*_: object) -> None:
        modes.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def leave(*_: object) -> None:
        torch.set_grad_enabled(modes.pop())

    with ExitStack() as hooks:
        if not any(parameter.requires_grad and id(parameter) not in own for parameter in tower.parameters()):
            for part in _parts_without(tower, projector):
                hooks.callback(part.register_forward_pre_hook(enter).remove)
                hooks.callback(part.register_forward_hook(leave, always_call=True).remove)
        yield


def _parts_without(module: nn.Module, left_out: nn.Module) -> list[nn.Module]:
    """The largest modules inside that are called as such and do not contain `left_out`."""
    if module is left_out:
        return []
    listed = isinstance(module, nn.ModuleList | nn.ModuleDict)  # never called themselves
    if not listed and not any(inner is left_out for inner in module.modules()):
        return [module]
    return [part for child in module.children() for part in _parts_without(child, left_out)]
