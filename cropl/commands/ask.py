"""cropl ask IMAGE "QUESTION": the whole path for one question, and what it costs against dense."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl.commands.ask_answer import Answered, answer, chosen, depth, flops, patch
from cropl.commands.ask_options import GROUNDING, LOCALIZER, WITHOUT_REGIONS, Options, read
from cropl.commands.printing import waiting
from cropl.errors import UsageError
from cropl.grid import Region
from cropl.tiling import Tokens

if TYPE_CHECKING:
    from PIL import Image

    from cropl.models.region_sources import RegionSource
    from cropl.models.vlm import VLM


REPEATS, ENOUGH = 3, 2.0
"""Times that an answer is measured, and seconds after which it is not measured again."""


@dataclass
class Located:
    """A region, in words where it comes from, and the seconds it took; None where the method needs no region."""

    region: Region | None
    origin: str = "none"
    seconds: float = 0.0


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    options = read(args)
    if options is None:
        return 0

    # Torch is imported from here on: wrong arguments and broken images are told at once.
    image = _picture(options)

    import torch

    from cropl.commands.models import open_vlm

    with torch.inference_mode():
        method = _method_name(options)
        vlm = open_vlm(options.model, options.device, options.dtype)
        layer = _layer(options, method, vlm)
        grid = vlm.token_maps([image.size])[0]
        if isinstance(options.budget, int) and options.budget > grid.num_tokens:
            raise UsageError(
                f"--budget {options.budget}: this image has {grid.num_tokens} visual tokens; give at most that"
            )
        located = _locate(options, method, image)
        keep = _keep(options, method, located.region, grid)
        method_itself = chosen(options, method, layer, vlm, grid)
        context = patch(method, method_itself, vlm, located.region, grid, keep)

        with waiting("answering"):
            vlm.encode_images([image])  # untimed, as the first forwards pay for start-up
            began = time.perf_counter()
            features = vlm.encode_images([image])
            encoding = time.perf_counter() - began
            inputs = vlm.inputs([image], [options.question], features)
            ask = partial(answer, vlm, inputs, image, options.question)
            for each in (nullcontext, context):
                ask(each, 2)
            pruned = _fastest(partial(ask, context, options.max_new_tokens))
            dense = _fastest(partial(ask, nullcontext, options.max_new_tokens)) if options.compare else None
        cost = flops(vlm, inputs, pruned.layers, method_itself)

    kept = pruned.layers[-1]
    tokens = f"{kept} of {grid.num_tokens} ({100 * kept / grid.num_tokens:.1f} %){depth(pruned.layers)}"
    _tell(method, located, tokens, cost, pruned, dense, encoding)
    if options.overlay is not None:
        from cropl.evaluation.overlay import draw_overlay

        shown = pruned.left if method in WITHOUT_REGIONS and pruned.left else keep.tolist()
        draw_overlay(image, grid, shown, located.region).save(options.overlay)
        print(f"overlay   {options.overlay}")
    return 0


def _fastest(ask: Callable[[], Answered]) -> Answered:
    """The same answer up to three times, as others use this machine too; once where it takes long."""
    found = [ask()]
    while len(found) < REPEATS and sum(each.seconds for each in found) < ENOUGH:
        found.append(ask())
    return min(found, key=lambda each: each.seconds)


def _picture(options: Options) -> Image.Image:
    """The file's, standard input's, or a scene of the testbed."""
    if options.scene is not None:
        from cropl.testbed.scenes import scene

        return scene("test", options.scene).render()
    from cropl.data.images import load_image

    return load_image(sys.stdin.buffer.read() if options.image is None else options.image)


def _method_name(options: Options) -> str:
    """As asked; else PLC for a model that was trained with one, and ILP for all others."""
    from cropl.commands.models import checkpoint
    from cropl.models.compressor import CONFIG

    compresses = (Path(checkpoint(options.model)) / CONFIG).is_file()
    method = options.method or ("plc" if compresses else "ilp")
    if method == "plc" and not compresses:
        raise UsageError(f"--method plc: {options.model} has no {CONFIG}; give the folder of a model trained with PLC")
    if method == "plc" and options.budget is not None:
        raise UsageError(
            "--budget has no effect with --method plc: a compressor makes as many tokens as it was trained to"
        )
    if method not in ("ilp", *WITHOUT_REGIONS) and options.layer is not None:
        raise UsageError(f"--layer goes with --method ilp, not with {method}")
    return method


def _layer(options: Options, method: str, vlm: VLM) -> int:
    """K: as given, else near the paper's 2 of 32 layers."""
    from cropl.commands.models import need_prunable

    total = vlm.num_layers
    if method == "dense":
        return total
    need_prunable(vlm, options.model)
    if method in ("prune", "plc"):
        return 0
    layer = max(1, round(total / 16)) if options.layer is None else options.layer
    if layer > total:
        raise UsageError(f"--layer {layer}: {options.model} has {total} decoder layers; give 0 to {total}")
    return layer


def _locate(options: Options, method: str, image: Image.Image) -> Located:
    from cropl.data.sample import Sample

    origin, source = _source(options, method)
    if source is None:
        return Located(None)
    name = "image" if options.image is None else options.image.stem
    sample = Sample(
        key=name, question=options.question, answers=[], boxes=[], width=image.width,
        height=image.height, region=Region.full(), kind="", source="", split="", image=options.image,
    )  # fmt: skip
    began = time.perf_counter()
    with waiting("locating"):
        region = source([image], [options.question], [sample])[0]
    seconds = time.perf_counter() - began
    if getattr(source, "unparsable", 0):
        origin += ", which named no box: the whole image is kept"
    return Located(region, origin, seconds)


def _source(options: Options, method: str) -> tuple[str, RegionSource | None]:
    """Where the region comes from, in words, and the source; no source for dense."""
    from cropl.commands.models import TESTBED, open_localizer, open_vlm
    from cropl.models import region_sources as sources

    if method == "dense" or method in WITHOUT_REGIONS:
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


def _keep(options: Options, method: str, region: Region | None, grid: Tokens) -> Any:
    """Bool (V,): which visual tokens stay (or, with PLC, are the region's); all where there is no region."""
    import torch

    from cropl.pruning import keep_mask

    if region is None or method == "dense":
        return torch.ones(grid.num_tokens, dtype=torch.bool)
    return keep_mask(region, grid, options.budget)


def _tell(
    method: str,
    located: Located,
    tokens: str,
    flops: tuple[float, float],
    pruned: Answered,
    dense: Answered | None,
    encoding: float,
) -> None:
    from cropl.evaluation.tables import amount

    region = located.region
    if region is not None:
        corners = ",".join(str(value) for value in region.as_tuple())
        print(f"region    {corners}  ({region.width} x {region.height} of 8 x 8 blocks; {located.origin})")
    print(f"tokens    {tokens}")
    print(f"answer    {pruned.text}")
    if dense is not None:
        print(f"dense     {dense.text}")
    mine, whole = flops
    share = f"{100 * mine / whole:.0f} % of dense, {amount(whole, 'FLOP')}"
    print(f"prefill   {amount(mine, 'FLOP')}" + (f" ({share})" if method != "dense" else ""))
    timing = f"{method} {1000 * pruned.seconds:.0f} ms"
    if dense is not None:
        timing += f", dense {1000 * dense.seconds:.0f} ms"
    timing += f"; encoding the image {1000 * encoding:.0f} ms"
    if located.seconds > 1e-3:
        timing += f", localizing {1000 * located.seconds:.0f} ms (its first call)"
    print(f"timing    {timing}")
