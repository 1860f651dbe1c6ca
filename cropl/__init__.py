"""cropl: contextual-region visual token pruning for vision-language models, on PyTorch Lightning.

`import cropl` is cheap: it imports neither torch nor Lightning. The names below load their module on first use, so that
`from cropl import pruned, ILP` works while `cropl ls` stays instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from cropl.budget import calibrate as calibrate
    from cropl.evaluation.answerer import Answer as Answer
    from cropl.evaluation.answerer import Answerer as Answerer
    from cropl.grid import Region as Region
    from cropl.grid import TokenGrid as TokenGrid
    from cropl.metrics.area import AreaRecall as AreaRecall
    from cropl.models.localizer import Localizer as Localizer
    from cropl.models.vlm import load_vlm as load_vlm
    from cropl.prompt import RegionCodec as RegionCodec
    from cropl.pruning import ILP as ILP
    from cropl.pruning import PLC as PLC
    from cropl.pruning import DivPrune as DivPrune
    from cropl.pruning import FastV as FastV
    from cropl.pruning import Hybrid as Hybrid
    from cropl.pruning import PyramidDrop as PyramidDrop
    from cropl.pruning import Schedule as Schedule
    from cropl.pruning import SparseVLM as SparseVLM
    from cropl.pruning import VisionZip as VisionZip
    from cropl.pruning import VisPruner as VisPruner
    from cropl.pruning import pruned as pruned

_LAZY = {
    "Answer": "cropl.evaluation.answerer",
    "Answerer": "cropl.evaluation.answerer",
    "AreaRecall": "cropl.metrics.area",
    "DivPrune": "cropl.pruning",
    "FastV": "cropl.pruning",
    "Hybrid": "cropl.pruning",
    "ILP": "cropl.pruning",
    "PLC": "cropl.pruning",
    "PyramidDrop": "cropl.pruning",
    "Schedule": "cropl.pruning",
    "SparseVLM": "cropl.pruning",
    "VisPruner": "cropl.pruning",
    "VisionZip": "cropl.pruning",
    "Localizer": "cropl.models.localizer",
    "Region": "cropl.grid",
    "RegionCodec": "cropl.prompt",
    "TokenGrid": "cropl.grid",
    "calibrate": "cropl.budget",
    "load_vlm": "cropl.models.vlm",
    "pruned": "cropl.pruning",
}

__all__ = sorted([*_LAZY, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'cropl' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
