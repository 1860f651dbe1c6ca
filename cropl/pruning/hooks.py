"""The hooks that prune: one `Patch` per `pruned(...)` context, on one model instance.

Shapes: B rows, S unpruned positions, M surviving positions, L decoder layers, D hidden width.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from cropl.models.attention import LayerInput, input_of
from cropl.models.vlm import VLM
from cropl.pruning.base import InnerLLM, NotSupportedError, PreLLM, PruningError
from cropl.pruning.cache import Prefix, PrunedCache, check_cache
from cropl.pruning.calls import (
    asks_for_inner_states,
    attended,
    check_continuation,
    check_prefill,
    check_step,
    named,
)
from cropl.pruning.compression import Compression
from cropl.pruning.deltas import RopeDeltas
from cropl.pruning.labels import take_out_labels, with_loss
from cropl.pruning.packed import Kernel
from cropl.pruning.record import Record
from cropl.pruning.request import Request
from cropl.pruning.run import Kwargs, Prefill, Run

Args = tuple[Any, ...]


class Patch(Record):
    """A running `pruned(...)` context, and the record of its last prefill.

    Attributes:
        active: False once the context has been left.
        positions: of the survivors, "original" or "compact".
    """

    def __init__(self, vlm: VLM, method: InnerLLM | PreLLM, request: Request) -> None:
        super().__init__()
        self.active = False
        self._vlm, self._request = vlm, request
        self._method = Compression(method, vlm.class_token) if isinstance(method, PreLLM) else method
        self._handles: list[Any] = []
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._deltas = RopeDeltas(vlm.base)
        self._kernel = Kernel(vlm.decoder.config)
        self.positions = self._method.positions

    @property
    def looks_into_tower(self) -> bool:
        """Whether images have to run through the vision tower inside the context: features from before do not do."""
        return isinstance(self._method, Compression) and not self._method.placed

    def install(self) -> None:
        """Put the hooks on the instance."""
        model, base, layers = self._vlm.model, self._vlm.base, self._vlm.decoder.layers
        self._handles += [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            model.register_forward_hook(self._after_model, with_kwargs=True, always_call=True),
            base.register_forward_pre_hook(self._before_base, with_kwargs=True),
            base.register_forward_hook(self._after_base, with_kwargs=True, always_call=True),
        ]
        if isinstance(self._method, Compression):
            self._handles.append(self._method.watch(self._vlm))
        if self._method.layers:
            decoder = self._vlm.decoder
            self._handles.append(decoder.rotary_emb.register_forward_pre_hook(self._before_rotary, with_kwargs=True))
            self._handles.append(decoder.norm.register_forward_pre_hook(self._before_norm))
        first = min(self._method.layers, default=self._vlm.num_layers)
        for index in range(first, self._vlm.num_layers):
            hook = partial(self._before_layer, index)
            self._handles.append(layers[index].register_forward_pre_hook(hook, with_kwargs=True))
        for index in self._method.watches:
            hook = partial(self._before_attention, index)
            self._handles.append(layers[index].self_attn.register_forward_pre_hook(hook, with_kwargs=True))
        self.active = True

    def remove(self) -> None:
        """Take them off again; nothing else of the instance was changed."""
        self.active = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._deltas.restore()
        self._kernel.restore()
        self._run = None

    def _begin(self, outer: bool) -> Run:
        with self._lock:
            if self._run is not None and self._run.thread != threading.get_ident():
                raise PruningError("two threads run this pruned model at once: give each thread its own model")
            self._kernel.restore()  # a run of this thread that is still there was interrupted
            self._run = Run(outer)
            return self._run

    def _own_run(self) -> Run | None:
        run = self._run
        return run if run is not None and run.thread == threading.get_ident() else None

    def _before_model(self, module: nn.Module, args: Args, kwargs: Kwargs) -> Any:
        """Take labels out of the call: which positions survive is known only later."""
        run = self._begin(outer=True)
        kwargs = named(module, args, kwargs)
        if self._method.layers:
            run.labels_BS, run.loss_options = take_out_labels(kwargs)
        return (), kwargs

    def _after_model(self, module: Any, args: Args, kwargs: Kwargs, output: Any) -> Any:
        run = self._own_run()
        if run is None:  # this call was refused, another thread's goes on
            return None
        self._run = None
        if run.labels_BS is None or output is None:
            return None
        groups = run.prefill.groups if run.prefill is not None else []
        return with_loss(module, output, groups[-1].rows if groups else None, run.labels_BS, run.loss_options)

    def _before_base(self, module: nn.Module, args: Args, kwargs: Kwargs) -> Any:
        """Decide what this forward is: a prefill, a step on a pruned cache, or none of our business."""
        run = self._own_run()
        if run is None or not run.outer:
            run = self._begin(outer=False)
        kwargs = named(module, args, kwargs)
        cache = kwargs.get("past_key_values")
        if self._method.layers:
            check_cache(cache)
        if cache is None or cache.get_seq_length() == 0:
            self._start_prefill(run, kwargs)
        elif isinstance(cache, PrunedCache):
            self._start_step(run, cache, kwargs)
        else:
            if self._method.layers:
                check_continuation(kwargs)
            self._deltas.recall(cache)
        return (), kwargs

    def _after_base(self, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> None:
        run = self._own_run()
        if run is None:
            return
        run.unpack()  # a forward that failed left it so
        self._kernel.restore()
        if run.prefix is None:
            self._deltas.note(output)
        if not run.outer:
            self._run = None

    def _start_prefill(self, run: Run, kwargs: Kwargs) -> None:
        visual_BS = self._vlm.visual_mask(check_prefill(kwargs))
        attended_BS, cache = attended(kwargs), kwargs.get("past_key_values")
        if isinstance(cache, PrunedCache):
            cache.release()
        counts = visual_BS.sum(1).tolist()
        self.note_prefill(counts, self._vlm.num_layers)
        if self._method.layers:
            run.packs = (
                self._kernel.packs
                and not torch.is_grad_enabled()
                and not asks_for_inner_states(self._kernel.config, kwargs)
            )
            if isinstance(self._method, Compression) and self._method.placed:
                placed = self._request.places(self._vlm, counts, kwargs)
                run.prefill = Prefill(attended_BS, visual_BS, attended_BS, None, placed, counts)
            else:
                requested_BS = self._request.mask(self._vlm, visual_BS, counts, kwargs)
                run.prefill = Prefill(attended_BS, visual_BS, attended_BS, requested_BS, None, counts)

    def _start_step(self, run: Run, cache: PrunedCache, kwargs: Kwargs) -> None:
        prefix = cache.prefix
        new = check_step(prefix, self, kwargs)
        if kwargs.get("position_ids") is None or self._deltas.known:
            # Not the model's business: layer 0 may tell a shorter length, and rope deltas may be another prefill's.
            first = prefix.groups[0]
            behind_B = prefix.next_B + cache.get_seq_length(first.start) - first.length
            kwargs["position_ids"] = behind_B[:, None].to(new.device)
        run.prefix, run.attention_mask_BS = prefix, kwargs.get("attention_mask")

    def _before_layer(self, index: int, module: nn.Module, args: Args, kwargs: Kwargs) -> Any:
        run = self._own_run()
        if run is None:
            raise NotSupportedError("call the model, not its language model: pruning needs to see input_ids")
        hidden = args[0]
        if run.prefill is not None:
            if index in self._method.layers:
                hidden = self._prune(run, run.prefill, index, hidden, kwargs)
        elif run.prefix is not None:
            group = run.prefix.group(index)
            if group is not None and group is not run.group:
                run.enter_decoding(self._vlm.decoder, group, hidden, kwargs)
        if run.group is None:
            return (hidden, *args[1:]), kwargs
        # Position ids would only be read by flash attention, which takes gaps in them for packed sequences.
        kwargs = {**kwargs, "attention_mask": run.mask, "position_embeddings": run.rope, "position_ids": None}
        if run.packing is not None:
            kwargs |= run.packing.options(self._kernel.packed())
        return (hidden, *args[1:]), kwargs

    def _before_norm(self, module: nn.Module, args: Args) -> Args | None:
        """Behind the last layer, packed rows become padded ones again."""
        run = self._own_run()
        if run is None or run.packing is None:
            return None
        hidden_BMD = run.pad(args[0])
        run.unpack()
        self._kernel.restore()
        return (hidden_BMD, *args[1:])

    def _before_rotary(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Note the positions of a forward: the model computes them where the caller gives none."""
        run = self._own_run()
        if run is not None and run.position is None:  # what comes later are positions of survivors
            run.position = named(module, args, kwargs)["position_ids"]

    def _before_attention(self, index: int, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Note what a watched layer looks at, in a prefill."""
        run = self._own_run()
        if run is not None and run.prefill is not None:
            seen = LayerInput.of(module, args, kwargs)
            parts = (run.pad(part) for part in (seen.hidden_BSD, seen.cos_BSE, seen.sin_BSE))
            run.attention[index] = LayerInput(seen.attention, *parts)

    def _prune(self, run: Run, prefill: Prefill, index: int, hidden: Tensor, kwargs: Kwargs) -> Tensor:
        hidden_BSD = run.pad(hidden)
        self._kernel.restore()  # rows may need no packing from here on, and masks are made for the model's own kernel
        rope = kwargs["position_embeddings"] if run.padded_rope is None else run.padded_rope

        cache = kwargs.get("past_key_values")

        def attention(layer: int) -> LayerInput:
            if layer == index:  # it has not run yet
                return input_of(self._vlm.decoder.layers[layer], hidden_BSD, rope)
            # An offloading cache has sent them away; without a cache there are none.
            keys_BGSE = None if cache is None or cache.offloading else cache.layers[layer].keys
            if layer not in run.attention:
                raise PruningError(
                    f"layer {layer} ran before tokens were dropped, and its attention is not that of the tokens left: "
                    "let methods watch layers behind the prune before theirs"
                )
            return replace(run.attention[layer], key_BGSE=keys_BGSE)

        pruning = prefill.prune(self._method, index, hidden_BSD, attention)
        run.attention.clear()
        if pruning is None:
            hidden_BSD = self._method.rewrite(hidden_BSD, prefill.visual_BS & prefill.attended_BS)
            return hidden_BSD if run.packing is None else run.packing.pack(hidden_BSD)
        rows, kept = pruning
        taken_BMD = rows.take(hidden_BSD)
        hidden_BMD = self._method.rewrite(taken_BMD, prefill.visual_BS)
        prefill.note_made(taken_BMD, hidden_BMD)
        run.enter_pruned(self._vlm.decoder, hidden_BMD, kwargs, self.positions == "compact")
        if cache is not None:
            length, next_B = prefill.full_BS.shape[1], run.unpruned.next_B
            prefix = Prefix(ref(self), length, next_B, *prefill.padding, tuple(prefill.groups))
            run.cache = PrunedCache.adopt(cache, prefix)
        hidden = run.pack(hidden_BMD)
        waste = hidden_BMD.shape[:2].numel() / sum(prefill.lengths)
        self.note_prune(index, kept, prefill.groups[-1].rows, waste, run.packing is not None)
        return hidden
