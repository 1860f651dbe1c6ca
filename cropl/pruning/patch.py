"""The only decoder surgery: applies a pruning method to one model instance, and undoes it.

The model's own forward runs unchanged. Hooks on the instance gather hidden states in front of the pruning layer and
give the layers behind it their own mask and position embeddings; removing the hooks restores the instance. No class is
ever touched, so other models in the process do not notice.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import nn

from cropl.models.vlm import VLM, as_vlm
from cropl.pruning.base import InnerLLM, PreLLM, PruningError
from cropl.pruning.checks import check_method, check_model
from cropl.pruning.hooks import Patch
from cropl.pruning.request import Keep, Request
from cropl.tiling import Regions, Tokens

_active: WeakSet[nn.Module] = WeakSet()
_lock = threading.Lock()


def is_pruned(vlm: VLM) -> bool:
    """Whether the model is inside a `pruned(...)` context."""
    return vlm.decoder in _active


@contextmanager
def pruned(
    model: Any,
    method: InnerLLM | PreLLM,
    *,
    regions: Sequence[Regions | None] | None = None,
    image_sizes: Sequence[tuple[int, int]] | None = None,
    grids: Sequence[Tokens] | None = None,
    keep: Keep | None = None,
) -> Iterator[Patch]:
    """Run `model` with `method` inside the `with` block: forward, `generate` with any batch, sampling, beams.

    Args:
        model: a `transformers` model of a supported family, or our VLM around it.
        method: `ILP(...)`, `Dense()`, `RandomTokens(...)`, any `InnerLLM`; `PLC(...)`, any `PreLLM`.
        regions: one contextual region per row, or a sequence of regions for their union (None: the row keeps
            everything).
        image_sizes: `(width, height)` of each region's image; images count as square where none are given.
        grids: each region's token grid or map (`inputs.grids`), instead of `image_sizes`.
        keep: the visual tokens that stay, bool BV or one bool vector per row, instead of regions.

    `generate` repeats rows; regions and the like repeat with them. Every prefill in the block prunes anew. Outputs hold
    the surviving positions, left-padded; labels are gathered alike.

    Example (a model and a picture that ship with the package):
        >>> from cropl import ILP, Region, load_vlm
        >>> from cropl.testbed.samples import samples
        >>> vlm, (sample,) = load_vlm("testbed:llava"), samples("test", 1, start=4)
        >>> inputs = vlm.inputs([sample.picture()], [sample.question])
        >>> with pruned(vlm, ILP(layer=1), regions=[Region(3, 5, 7, 7)], grids=inputs.grids) as patch:
        ...     print(sample.question, vlm.generate(inputs), patch.kept_B.tolist())
        What word is on the red sign? ['park'] [150]

    Yields:
        The `Patch`, which records what the last prefill kept.

    Raises:
        NotSupportedError: a model, kernel, cache or way of decoding that pruning does not work with.
        PruningError: the model is being pruned already, or a pruned cache is used where it cannot be.
        ValueError: the arguments do not fit the model or each other.
    """
    vlm = as_vlm(model)
    request = Request(regions, image_sizes, grids, keep)
    check_model(vlm)
    check_method(method, vlm.num_layers, bool(request))
    with _lock:
        if is_pruned(vlm):
            raise PruningError(f"this {type(vlm.model).__name__} is pruned already: leave the other context first")
        _active.add(vlm.decoder)
    patch = Patch(vlm, method, request)
    try:
        patch.install()
        yield patch
    finally:
        patch.remove()
        with _lock:
            _active.discard(vlm.decoder)
