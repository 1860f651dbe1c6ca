"""What the plug-in uses of lmms-eval, for tests without it: three classes and a request."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

MODULES = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.instance", "lmms_eval.api.model", "lmms_eval.models")
PLUGIN = "cropl.integrations.lmms"


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


class CacheHook:
    def __init__(self) -> None:
        self.seen: list[tuple[str, Any, str]] = []

    def add_partial(self, attr: str, request: Any, result: str) -> None:
        self.seen.append((attr, request, result))


class Lmms:
    is_simple = True

    def __init__(self) -> None:
        self.rank = 1  # no progress bar
        self.cache_hook = CacheHook()
        self.task_dict: dict[str, Any] = {}


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


@dataclass
class Request:
    args: tuple[Any, ...]


def install(monkeypatch: Any) -> None:
    """Put the stub where lmms-eval would be imported from, and have the plug-in imported anew."""
    registry = "lmms_eval.models.registry_v2"
    for name in (*MODULES, registry):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules["lmms_eval.api.instance"]).update(TokenCounts=TokenCounts, GenerationResult=GenerationResult)
    vars(sys.modules["lmms_eval.api.model"]).update(lmms=Lmms)
    vars(sys.modules[registry]).update(ModelManifest=ModelManifest)
    forget(monkeypatch)


def forget(monkeypatch: Any) -> None:
    """Have the plug-in imported anew, and not leave what is imported to other tests."""
    monkeypatch.setitem(sys.modules, PLUGIN, None)
    del sys.modules[PLUGIN]
