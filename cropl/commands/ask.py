"""cropl ask IMAGE "QUESTION": the whole path for one question, with the dense answer and its time beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cropl.commands.ask_options import GROUNDING, LOCALIZER, Options, read
from cropl.errors import UsageError
from cropl.grid import Region, TokenGrid

if TYPE_CHECKING:
    from PIL import Image

    from cropl.models.inputs import VLMInputs
    from cropl.models.region_sources import RegionSource
    from cropl.models.vlm import VLM


@dataclass
class Located:
    """A region, in words where it comes from, and the seconds it took; None where the method needs no region."""

    region: Region | None
    origin: str = "none"
    seconds: float = 0.0


@dataclass
class Answered:
    """An answer, and the seconds of its generation with the image already encoded."""

    text: str
    seconds: float


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    options = read(args)
    if options is None:
        return 0

    # Torch is imported from here on: wrong arguments and broken images are told at once.
    from cropl.data.images import load_image

    image = load_image(options.image)

    import torch

    from cropl.commands.models import open_vlm

    with torch.inference_mode():
        vlm = open_vlm(options.model, options.device, options.dtype)
        layer = _layer(options, vlm)
        grid = vlm.inputs([image], [options.question]).grids[0]
        if isinstance(options.budget, int) and options.budget > grid.num_tokens:
            raise UsageError(
                f"--budget {options.budget}: this image has {grid.num_tokens} visual tokens; give at most that"
            )
        located = _locate(options, image)
        keep = _keep(options, located.region, grid)

        began = time.perf_counter()
        features = vlm.encode_images([image])
        encoding = time.perf_counter() - began
        inputs = vlm.inputs([image], [options.question], features)
        _answer(vlm, inputs, None, keep, 1)  # the first forward pays for start-up, which would make dense look slow
        dense = _answer(vlm, inputs, None, keep, options.max_new_tokens)
        pruned = dense
        if options.method != "dense":
            pruned = _answer(vlm, inputs, _method(options, layer), keep, options.max_new_tokens)

    _tell(options, located, keep, layer, vlm.num_layers, pruned, dense, encoding)
    if options.overlay is not None:
        from cropl.evaluation.overlay import draw_overlay

        draw_overlay(image, grid, keep.tolist(), located.region).save(options.overlay)
        print(f"overlay   {options.overlay}")
    return 0


def _layer(options: Options, vlm: VLM) -> int:
    """K: as given, else near the paper's 2 of 32 layers."""
    from cropl.commands.models import need_prunable

    total = vlm.num_layers
    if options.method == "dense":
        return total
    need_prunable(vlm, options.model)
    if options.method == "prune":
        return 0
    layer = max(1, round(total / 16)) if options.layer is None else options.layer
    if layer > total:
        raise UsageError(f"--layer {layer}: {options.model} has {total} decoder layers; give 0 to {total}")
    return layer


def _locate(options: Options, image: Image.Image) -> Located:
    from cropl.data.sample import Sample

    origin, source = _source(options)
    if source is None:
        return Located(None)
    sample = Sample(
        key=options.image.stem, question=options.question, answers=[], boxes=[], width=image.width,
        height=image.height, region=Region.full(), kind="", source="", split="", image=options.image,
    )  # fmt: skip
    began = time.perf_counter()
    region = source([image], [options.question], [sample])[0]
    seconds = time.perf_counter() - began
    if getattr(source, "unparsable", 0):
        origin += ", which named no box: the whole image is kept"
    return Located(region, origin, seconds)


def _source(options: Options) -> tuple[str, RegionSource | None]:
    """Where the region comes from, in words, and the source; no source for dense."""
    from cropl.commands.models import TESTBED, open_localizer, open_vlm
    from cropl.models import region_sources as sources

    if options.method == "dense":
        return "none", None
    if options.region is not None:
        return "given", sources.Fixed(options.region)
    if options.regions is not None:
        return f"from {options.regions}", sources.FromFile(options.regions)
    name = options.localizer or (LOCALIZER if options.model.startswith(TESTBED) else None)
    if options.zero_shot is None and name is not None:
        return f"predicted by {name}", sources.Predicted(open_localizer(name, options.device, options.dtype))
    name = options.zero_shot or GROUNDING
    return f"zero-shot, {name}", sources.ZeroShotGrounding(open_vlm(name, options.device, options.dtype))


def _keep(options: Options, region: Region | None, grid: TokenGrid) -> Any:
    """Bool (V,): which visual tokens stay; all where there is no region."""
    import torch

    from cropl.pruning import keep_mask

    if region is None or options.method == "dense":
        return torch.ones(grid.num_tokens, dtype=torch.bool)
    return keep_mask(region, grid, options.budget)


def _method(options: Options, layer: int) -> Any:
    from cropl.pruning import ILP

    return ILP(layer=0, positions="compact") if options.method == "prune" else ILP(layer=layer)


def _answer(vlm: VLM, inputs: VLMInputs, method: Any, keep: Any, max_new_tokens: int) -> Answered:
    """One greedy answer; by the untouched model where `method` is None."""
    from contextlib import nullcontext

    from cropl.pruning import pruned

    began = time.perf_counter()
    with nullcontext() if method is None else pruned(vlm, method, keep=[keep]):
        text = vlm.generate(inputs, max_new_tokens=max_new_tokens, do_sample=False)[0]
    return Answered(text, time.perf_counter() - began)


def _tell(
    options: Options,
    located: Located,
    keep: Any,
    layer: int,
    num_layers: int,
    pruned: Answered,
    dense: Answered,
    encoding: float,
) -> None:
    kept, total, region = int(keep.sum()), len(keep), located.region
    if region is not None:
        corners = ",".join(str(value) for value in region.as_tuple())
        print(f"region    {corners}  ({region.width} x {region.height} of 8 x 8 blocks; {located.origin})")
    depth = f", from decoder layer {layer} of {num_layers} on" if options.method != "dense" else ""
    print(f"tokens    {kept} of {total} ({100 * kept / total:.1f} %){depth}")
    print(f"answer    {pruned.text}")
    timing = f"{options.method} {1000 * pruned.seconds:.0f} ms"
    if options.method != "dense":
        print(f"dense     {dense.text}")
        timing += f", dense {1000 * dense.seconds:.0f} ms"
    timing += f"; encoding the image {1000 * encoding:.0f} ms"
    if located.seconds > 1e-3:
        timing += f", localizing {1000 * located.seconds:.0f} ms"
    print(f"timing    {timing}")
