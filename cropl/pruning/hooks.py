"""The hooks that prune: one `Patch` per `pruned(...)` context, on one model instance.

Shapes: B rows, S unpruned positions, M surviving positions, L decoder layers, D hidden width, C vocabulary.
"""

from __future__ import annotations

import inspect
import threading
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from cropl.models.attention import LayerInput, input_of
from cropl.models.vlm import VLM
from cropl.pruning.base import InnerLLM, NotSupportedError, PreLLM, PruningError
from cropl.pruning.cache import Prefix, PrunedCache, check_cache
from cropl.pruning.compression import Compression
from cropl.pruning.gather import take_labels
from cropl.pruning.request import Request
from cropl.pruning.run import Kwargs, Prefill, Run

Args = tuple[Any, ...]


class Patch:
    """A running `pruned(...)` context, and the record of its last prefill.

    Attributes:
        active: False once the context has been left.
        prefills: how many prefills ran.
        visual_BL: long, visual tokens entering each decoder layer, per row; None before the first prefill.
        survivors_BM: long, the unpruned positions that outputs stand for, -1 on padding; None if nothing was dropped.
    """

    def __init__(self, vlm: VLM, method: InnerLLM | PreLLM, request: Request) -> None:
        self.active = False
        self.prefills = 0
        self.visual_BL: Tensor | None = None
        self.survivors_BM: Tensor | None = None
        self._vlm, self._request = vlm, request
        self._method = Compression(method) if isinstance(method, PreLLM) else method
        self._handles: list[Any] = []
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._compact = self._method.positions == "compact"

    @property
    def visual_B(self) -> Tensor | None:
        """Long: visual tokens per row before pruning."""
        return None if self.visual_BL is None else self._total_B

    @property
    def kept_B(self) -> Tensor | None:
        """Long: visual tokens per row that the last layer sees."""
        return None if self.visual_BL is None else self.visual_BL[:, -1]

    def install(self) -> None:
        """Put the hooks on the instance."""
        model, base, layers = self._vlm.model, self._vlm.base, self._vlm.decoder.layers
        self._handles += [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            model.register_forward_hook(self._after_model, with_kwargs=True, always_call=True),
            base.register_forward_pre_hook(self._before_base, with_kwargs=True),
            base.register_forward_hook(self._after_base, with_kwargs=True, always_call=True),
        ]
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
        self._run = None

    def _begin(self, outer: bool) -> Run:
        with self._lock:
            if self._run is not None and self._run.thread != threading.get_ident():
                raise PruningError("two threads run this pruned model at once: give each thread its own model")
            self._run = Run(outer)  # a run of this thread that is still there was interrupted
            return self._run

    def _own_run(self) -> Run | None:
        run = self._run
        return run if run is not None and run.thread == threading.get_ident() else None

    def _before_model(self, module: nn.Module, args: Args, kwargs: Kwargs) -> Any:
        """Take labels out of the call: which positions survive is known only later."""
        run = self._begin(outer=True)
        kwargs = _named(module, args, kwargs)
        if not self._method.layers:
            return (), kwargs
        to_keep = kwargs.get("logits_to_keep", 0)
        if isinstance(to_keep, Tensor):
            raise NotSupportedError("logits_to_keep must be an integer: a tensor would name positions that may be gone")
        if kwargs.get("labels") is not None:
            if to_keep or "shift_labels" in kwargs:
                raise NotSupportedError("labels cannot go with logits_to_keep or shift_labels: give labels alone")
            run.labels_BS = kwargs.pop("labels")
            run.loss_options = {k: v for k, v in kwargs.items() if k == "num_items_in_batch"}
        return (), kwargs

    def _after_model(self, module: Any, args: Args, kwargs: Kwargs, output: Any) -> Any:
        run = self._own_run()
        if run is None:  # this call was refused, another thread's goes on
            return None
        self._run = None
        if run.labels_BS is None or output is None:
            return None
        groups = run.prefill.groups if run.prefill is not None else []
        labels_BM = take_labels(groups[-1].rows, run.labels_BS) if groups else run.labels_BS
        logits_BMC = output[0] if isinstance(output, tuple) else output.logits
        vocab_size = module.config.get_text_config().vocab_size
        loss = module.loss_function(logits=logits_BMC, labels=labels_BM, vocab_size=vocab_size, **run.loss_options)
        return (loss, *output) if isinstance(output, tuple) else type(output)(loss=loss, **output)

    def _before_base(self, module: nn.Module, args: Args, kwargs: Kwargs) -> Any:
        """Decide what this forward is: a prefill, a step on a pruned cache, or none of our business."""
        run = self._own_run()
        if run is None or not run.outer:
            run = self._begin(outer=False)
        kwargs = _named(module, args, kwargs)
        cache = kwargs.get("past_key_values")
        if self._method.layers:
            check_cache(cache)
        if cache is None or cache.get_seq_length() == 0:
            self._start_prefill(run, kwargs)
        elif isinstance(cache, PrunedCache):
            self._start_step(run, cache, kwargs)
        elif self._method.layers and _has_images(kwargs):
            raise NotSupportedError(
                "images on top of a filled cache (second turn, cached prefix, prefill_chunk_size) cannot be pruned: "
                "prefill the whole prompt at once"
            )
        return (), kwargs

    def _after_base(self, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> None:
        run = self._own_run()
        if run is not None and not run.outer:
            self._run = None

    def _start_prefill(self, run: Run, kwargs: Kwargs) -> None:
        ids_BS, mask_BS, cache = kwargs.get("input_ids"), kwargs.get("attention_mask"), kwargs.get("past_key_values")
        if ids_BS is None:
            raise NotSupportedError("pruning finds visual tokens in input_ids: give input_ids, not inputs_embeds")
        if mask_BS is not None and (not isinstance(mask_BS, Tensor) or mask_BS.shape != ids_BS.shape):
            raise NotSupportedError(f"attention_mask must have the shape of input_ids, {tuple(ids_BS.shape)}")
        if isinstance(cache, PrunedCache):
            cache.release()
        visual_BS = self._vlm.visual_mask(ids_BS)
        attended_BS = torch.ones_like(visual_BS) if mask_BS is None else mask_BS.to(visual_BS.device).bool()
        counts = visual_BS.sum(1).tolist()
        self.prefills += 1
        self.visual_BL = torch.tensor(counts)[:, None].repeat(1, self._vlm.num_layers)
        self._total_B = self.visual_BL[:, 0].clone()
        self.survivors_BM = None
        if self._method.layers:
            if isinstance(self._method, Compression):
                placed = self._request.places(self._vlm, counts, kwargs)
                run.prefill = Prefill(attended_BS, visual_BS, attended_BS, None, placed, counts)
            else:
                requested_BS = self._request.mask(self._vlm, visual_BS, counts, kwargs)
                run.prefill = Prefill(attended_BS, visual_BS, attended_BS, requested_BS, None, counts)

    def _start_step(self, run: Run, cache: PrunedCache, kwargs: Kwargs) -> None:
        prefix, mask_BS = cache.prefix, kwargs.get("attention_mask")
        new = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        if prefix.owner() is not self:
            raise PruningError("this key-value cache was filled inside another pruned(...) context: prefill again")
        if new.shape[1] != 1:
            raise NotSupportedError(
                "several tokens at once on a pruned cache (second turn, chunked prefill, assisted decoding) are not "
                "supported: decode one token at a time, or prefill the whole prompt at once"
            )
        if prefix.right_padded:
            raise NotSupportedError("right-padded prompts cannot be continued: pad on the left (padding_side='left')")
        first = prefix.groups[0]
        if new.shape[0] != len(first.dropped_B):
            raise PruningError(f"{new.shape[0]} rows on a cache of {len(first.dropped_B)} rows")
        if mask_BS is not None and (not isinstance(mask_BS, Tensor) or mask_BS.ndim != 2):
            raise NotSupportedError("only two-dimensional attention masks are supported by pruning")
        if kwargs.get("position_ids") is None and first.start == 0:
            # Layer 0 tells its own, shorter length; every other prune leaves layer 0 with the true one.
            position = cache.get_seq_length(0) - first.length + prefix.full_length
            kwargs["position_ids"] = torch.tensor([[position]], device=new.device)
        run.prefix, run.attention_mask_BS = prefix, mask_BS

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
                run.enter_decoding(self._vlm.decoder, group, hidden, kwargs, self._compact)
        if run.group is None:
            return (hidden, *args[1:]), kwargs
        # Position ids would only be read by flash attention, which takes gaps in them for packed sequences.
        kwargs = {**kwargs, "attention_mask": run.mask, "position_embeddings": run.rope, "position_ids": None}
        return (hidden, *args[1:]), kwargs

    def _before_attention(self, index: int, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Note what a watched layer looks at, in a prefill."""
        run = self._own_run()
        if run is not None and run.prefill is not None:
            run.attention[index] = LayerInput.of(module, args, kwargs)

    def _prune(self, run: Run, prefill: Prefill, index: int, hidden_BSD: Tensor, kwargs: Kwargs) -> Tensor:
        rope = kwargs["position_embeddings"] if run.rope is None else run.rope

        def attention(layer: int) -> LayerInput:
            ahead = layer == index  # this layer has not run yet
            return input_of(self._vlm.decoder.layers[layer], hidden_BSD, rope) if ahead else run.attention[layer]

        pruning = prefill.prune(self._method, index, hidden_BSD, attention)
        run.attention.clear()
        if pruning is None:
            return self._method.rewrite(hidden_BSD, prefill.visual_BS & prefill.attended_BS)
        rows, kept = pruning
        hidden_BMD, group = self._method.rewrite(rows.take(hidden_BSD), prefill.visual_BS), prefill.groups[-1]
        cache, full_BS = kwargs.get("past_key_values"), prefill.full_BS
        run.enter_pruned(self._vlm.decoder, group, hidden_BMD, kwargs, self._compact)
        if cache is not None:
            right_padded = not bool(full_BS[:, -1].all())
            PrunedCache.adopt(cache, Prefix(ref(self), full_BS.shape[1], right_padded, tuple(prefill.groups)))
        assert self.visual_BL is not None
        self.visual_BL[:, index:] = torch.tensor(kept)[:, None]
        self.survivors_BM = group.rows.index_BM.masked_fill(~group.rows.real_BM, -1)
        return hidden_BMD


def _named(module: nn.Module, args: Args, kwargs: Kwargs) -> Kwargs:
    """All arguments of a forward by name, in a new dict."""
    if not args:
        return dict(kwargs)
    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _has_images(kwargs: Kwargs) -> bool:
    # Not by the placeholder: a sampled token may happen to be one.
    return kwargs.get("pixel_values") is not None or bool(kwargs.get("mm_encoder_outputs"))
