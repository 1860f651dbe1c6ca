"""Visual token pruning: methods that decide which tokens stay, and the one patch that makes it so.

```python
with pruned(model, ILP(layer=2), regions=regions, image_sizes=sizes) as patch:
    out = model.generate(**inputs, max_new_tokens=32)
patch.kept_B  # visual tokens that stayed, per row
```
"""

from cropl.pruning.base import DecoderView, InnerLLM, NotSupportedError, PreLLM, PruningError
from cropl.pruning.dense import Dense
from cropl.pruning.divprune import DivPrune
from cropl.pruning.fastv import FastV
from cropl.pruning.hooks import Patch
from cropl.pruning.hybrid import Hybrid
from cropl.pruning.ilp import ILP
from cropl.pruning.patch import pruned
from cropl.pruning.plc import PLC
from cropl.pruning.pyramiddrop import PyramidDrop
from cropl.pruning.random import RandomTokens
from cropl.pruning.request import keep_mask, region_mask
from cropl.pruning.schedule import Schedule
from cropl.pruning.sparsevlm import SparseVLM
from cropl.pruning.static import StaticRunner
from cropl.pruning.tower import TowerMethod
from cropl.pruning.uniform import UniformTokens
from cropl.pruning.visionzip import VisionZip
from cropl.pruning.vispruner import VisPruner

__all__ = [
    "ILP",
    "PLC",
    "DecoderView",
    "Dense",
    "DivPrune",
    "FastV",
    "Hybrid",
    "InnerLLM",
    "NotSupportedError",
    "Patch",
    "PreLLM",
    "PruningError",
    "PyramidDrop",
    "RandomTokens",
    "Schedule",
    "SparseVLM",
    "StaticRunner",
    "TowerMethod",
    "UniformTokens",
    "VisPruner",
    "VisionZip",
    "keep_mask",
    "pruned",
    "region_mask",
]
