"""Pruned answers at static shapes: for `torch.compile` and CUDA graphs, without a compilation per region.

`pruned(...)` hooks into a forward whose shapes follow every region. Where the kept tokens are known before the prefill
(ILP, and whatever else needs nothing of what the layers compute), the decoder's own layers can be run at a few lengths
instead: a prompt's tokens at its bucket's length, the kept ones at theirs, each with key-value buffers of that length.
Everything in front of the layers (tower, embeddings, positions) is the model's own forward, uncompiled.

Shapes: B rows, S positions of the prompt, N new tokens, L decoder layers, D hidden width, C vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from cropl.models.inputs import VLMInputs
from cropl.models.vlm import as_vlm
from cropl.pruning.ahead import Stage, check_ahead, grown, stages
from cropl.pruning.base import InnerLLM
from cropl.pruning.buckets import BUCKETS, Layout, bucket_of, check_buckets
from cropl.pruning.calls import attended, check_prefill
from cropl.pruning.checks import check_method
from cropl.pruning.ilp import ILP
from cropl.pruning.positions import Unpruned
from cropl.pruning.request import Keep, Request
from cropl.pruning.run import Prefill
from cropl.pruning.static_layers import Compile, Compiler, Function, Segment, head
from cropl.pruning.static_model import check_static, ends, entering
from cropl.tiling import Regions, Tokens


@dataclass(frozen=True)
class Filled:
    """What the last answers took.

    Attributes:
        visual: visual tokens of each row.
        asked: those that the method leaves at last.
        kept: those that were left; more than `asked` where regions were dilated.
        lengths: tokens of each row, text included, by stage of the decoder.
        buckets: the length that each stage ran at.
        starts: the first decoder layer of each stage.
        cache: of all layers, with the lengths of their stages.
    """

    visual: tuple[int, ...]
    asked: tuple[int, ...]
    kept: tuple[int, ...]
    lengths: tuple[tuple[int, ...], ...]
    buckets: tuple[int, ...]
    starts: tuple[int, ...]
    cache: Cache

    @property
    def dilated(self) -> bool:
        """Whether a region was grown."""
        return self.kept != self.asked

    @property
    def waste(self) -> float:
        """Positions that the last stage ran, per token that was there."""
        return len(self.kept) * self.buckets[-1] / sum(self.lengths[-1])


class StaticRunner:
    """Greedy answers of one model, pruned by one method, at static shapes.

    Gives the tokens that `generate` gives inside `pruned(...)`. Shapes are those of the batch, of the prompt's bucket
    and of the kept tokens' bucket; what was compiled and allocated for one is kept for the next call, see `release`.

    Args:
        model: a `transformers` model of a supported family, or our VLM around it; never modified.
        method: one whose kept tokens are known before the prefill: `ILP`, `UniformTokens`, `RandomTokens`, `Dense`, a
            `Schedule` of them.
        max_new_tokens: N, at most.
        buckets: ascending lengths in tokens, text included.
        compile: False, True (inductor), a mode of `torch.compile` such as "reduce-overhead" (CUDA graphs), or options.
        dilate: grow each region to the tokens that its bucket has room for, instead of leaving the rest as padding.
            Costs nothing more and keeps more than the method says: `last.dilated` tells so.

    Attributes:
        last: what the last call took; None before.

    Raises:
        NotSupportedError: this model or method cannot be run like this; the message says what to do.
        ValueError: the arguments do not fit each other.
    """

    def __init__(
        self,
        model: Any,
        method: InnerLLM,
        max_new_tokens: int = 32,
        buckets: Sequence[int] = BUCKETS,
        compile: Compile = True,
        dilate: bool = False,
    ) -> None:
        self.vlm = as_vlm(model)
        check_static(self.vlm)
        check_ahead(method)
        check_method(method, self.vlm.num_layers, requested=True)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
        if dilate and not isinstance(method, ILP):
            raise ValueError(f"dilate grows regions, and {type(method).__name__} keeps other tokens: use ILP")
        self.method, self.max_new_tokens, self.dilate = method, max_new_tokens, dilate
        self.buckets = check_buckets(buckets)
        self.last: Filled | None = None
        self._compiler = Compiler(compile)
        self._segments: dict[tuple[Any, ...], Segment] = {}
        self._heads: dict[tuple[Any, ...], Function] = {}

    @property
    def kv_bytes(self) -> int:
        """Bytes of all key-value buffers that are held, of every shape seen so far."""
        return sum(segment.kv_bytes for segment in self._segments.values())

    def release(self) -> None:
        """Let go of every buffer and compiled function."""
        self._segments.clear()
        self._heads.clear()
        self.last = None

    @torch.inference_mode()
    def generate(
        self,
        inputs: VLMInputs | Mapping[str, Any],
        *,
        regions: Sequence[Regions | None] | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        grids: Sequence[Tokens] | None = None,
        keep: Keep | None = None,
        max_new_tokens: int | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Ids (B, S + n): the prompts as they were given, and n <= N new tokens, as `model.generate` returns them.

        Args:
            inputs: what `model.generate` takes; padding on either side.
            regions, image_sizes, grids, keep: as for `pruned`; the grids are those of `VLMInputs` where not given.
            max_new_tokens: at most the runner's.
            watch: is given the logits (B, C) of each step, valid until it returns.

        Raises:
            PruningError: the prompt is longer than the largest bucket, or the model is being pruned right now.
            NotSupportedError: the call or the model's generation config asks for what is not greedy decoding.
            ValueError: regions and rows do not fit together.
        """
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if not 1 <= limit <= self.max_new_tokens:
            raise ValueError(f"max_new_tokens={limit}: this runner has room for 1 to {self.max_new_tokens}")
        if isinstance(inputs, VLMInputs) and regions is not None and image_sizes is None and grids is None:
            grids = inputs.grids
        kwargs = inputs.kwargs() if isinstance(inputs, VLMInputs) else dict(inputs)
        eos, pad = ends(self.vlm)
        request = Request(regions, image_sizes, grids, keep)
        check_method(self.method, self.vlm.num_layers, bool(request))
        ids_BS = check_prefill(kwargs)
        segments, cache, last_BD = self._prefill(kwargs, request)
        rows = len(ids_BS)
        out_BN, done_B = ids_BS.new_full((rows, limit), pad), ids_BS.new_zeros(rows, dtype=torch.bool)
        stop = torch.tensor(eos, device=ids_BS.device)
        embed, following = self.vlm.model.get_input_embeddings(), self._following(last_BD)
        for number in range(limit):
            logits_BC, token_B = following(last_BD)
            if watch is not None:
                watch(logits_BC)
            out_BN[:, number] = token_B = token_B.masked_fill(done_B, pad)
            done_B |= torch.isin(token_B, stop)
            if number + 1 == limit or (eos and bool(done_B.all())):
                break
            self._compiler.begin_step()
            hidden_B1D = embed(token_B)[:, None]
            for segment in segments:
                hidden_B1D = segment.step(cache, hidden_B1D, number)
            last_BD = hidden_B1D[:, 0]
        return torch.cat([ids_BS, out_BN[:, : number + 1]], dim=1)

    def _prefill(self, kwargs: dict[str, Any], request: Request) -> tuple[list[Segment], Cache, Tensor]:
        """The segments that ran, the cache of all layers, and each row's last hidden state (B, D)."""
        hidden_BSD, position = entering(self.vlm, kwargs)
        unpruned = Unpruned(attended(kwargs), self.vlm.visual_mask(kwargs["input_ids"]), position)
        visual: list[int] = unpruned.visual_BS.sum(1).tolist()
        found, layouts = self._laid_out(unpruned, visual, hidden_BSD, request, kwargs)
        asked = found[-1].kept
        if self.dilate:
            more = grown(self.vlm, request, found[-1], layouts[-1].lengths, layouts[-1].bucket, kwargs)
            found, layouts = self._laid_out(unpruned, visual, hidden_BSD, more, kwargs)
        stops = [*(stage.start for stage in found[1:]), self.vlm.num_layers]
        segments = [
            self._segment(stage.start, stop, layout, hidden_BSD)
            for stage, stop, layout in zip(found, stops, layouts, strict=True)
        ]
        cache = Cache(layers=[buffer for segment in segments for buffer in segment.buffers])
        self._compiler.begin_step()
        rotary, ahead = self.vlm.decoder.rotary_emb, torch.arange(self.max_new_tokens, device=position.device)
        hidden = layouts[0].take(hidden_BSD)
        for at, (stage, layout, segment) in enumerate(zip(found, layouts, segments, strict=True)):
            if at:
                hidden = layout.take_from(layouts[at - 1], hidden)
            hidden = segment.prefill(cache, hidden, rotary(hidden, position_ids=layout.places(stage.position)))
            behind = (stage.next_B[:, None] + ahead).expand(*position.shape[:-2], -1, -1)
            segment.follow(layout.length_B, rotary(hidden, position_ids=behind))
        lengths, buckets = zip(*((layout.lengths, layout.bucket) for layout in layouts))
        starts = tuple(stage.start for stage in found)
        self.last = Filled(tuple(visual), asked, found[-1].kept, lengths, buckets, starts, cache)
        return segments, cache, layouts[-1].last(hidden)

    def _laid_out(
        self, unpruned: Unpruned, visual: list[int], hidden_BSD: Tensor, request: Request, kwargs: dict[str, Any]
    ) -> tuple[list[Stage], list[Layout]]:
        """What each stage of the decoder sees, and at which length; `visual` tokens of each row were counted before."""
        full_BS, visual_BS = unpruned.attended_BS, unpruned.visual_BS
        requested_BS = request.mask(self.vlm, visual_BS, visual, kwargs)
        prefill = Prefill(full_BS, visual_BS, full_BS, requested_BS, None, visual)
        found = stages(self.method, prefill, unpruned, self.vlm.num_layers, hidden_BSD)
        layouts = []
        for stage in found:
            lengths = stage.keep_BS.sum(1).tolist()
            if not all(lengths):
                raise ValueError(f"row {lengths.index(0)} is empty: its attention_mask is 0 everywhere")
            layouts.append(Layout.of(stage.keep_BS, lengths, bucket_of(max(lengths), self.buckets)))
        return found, layouts

    def _following(self, last_BD: Tensor) -> Function:
        """The norm and the head of the model, for batches of this shape."""
        key = (*last_BD.shape, last_BD.dtype, last_BD.device)
        if key not in self._heads:
            self._heads[key] = self._compiler(head, f"head_batch_{len(last_BD)}")
        return partial(self._heads[key], self.vlm.decoder.norm, self.vlm.model.get_output_embeddings())

    def _segment(self, start: int, end: int, layout: Layout, hidden: Tensor) -> Segment:
        rows, length = layout.index_BT.shape
        key = (start, end, rows, length, hidden.dtype, hidden.device)
        if key not in self._segments:
            new = self.max_new_tokens
            self._segments[key] = Segment(self.vlm.decoder, start, end, rows, length, new, hidden, self._compiler)
        return self._segments[key]
