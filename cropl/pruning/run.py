"""One forward pass under a patch: the prefill that prunes, and the decoding steps that follow.

Shapes: B rows, S positions of the unpruned sequence, M surviving ones, T new ones, D hidden width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cropl.models.attention import LayerInput
from cropl.pruning.base import DecoderView, InnerLLM
from cropl.pruning.cache import Group, Prefix, PrunedCache
from cropl.pruning.gather import Rows
from cropl.pruning.masks import keep_diagonal, layer_mask
from cropl.pruning.packed import WORTH, Packing
from cropl.pruning.positions import Unpruned
from cropl.pruning.request import Places

Kwargs = dict[str, Any]
Rope = tuple[Tensor, ...]


@dataclass
class Prefill:
    """The sequence as it stands while layers prune it.

    Attributes:
        full_BS: bool, the attended positions of the unpruned sequence.
        visual_BS, attended_BS, requested_BS: see `DecoderView`; they shrink with every prune.
        placed, total_B: see `DecoderView`.
        groups: what was pruned so far.
        lengths: tokens of each row since the last prune.
        made_B: bool, rows in which the method put tokens of its own where visual tokens survive; None where none has.
        all_visual_BS: bool, the visual tokens of the unpruned sequence.
    """

    full_BS: Tensor
    visual_BS: Tensor
    attended_BS: Tensor
    requested_BS: Tensor | None
    placed: Places | None = None
    total_B: Sequence[int] = ()
    groups: list[Group] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    made_B: Tensor | None = None
    all_visual_BS: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.all_visual_BS = self.visual_BS

    def prune(
        self, method: InnerLLM, layer: int, hidden_BSD: Tensor, attention: Callable[[int], LayerInput]
    ) -> tuple[Rows, list[int]] | None:
        """Ask the method and drop tokens: the rows to gather from the current positions, and each row's visual tokens.

        None if no row loses a token: then nothing is touched, and padding stays where it was.
        """
        view = DecoderView(
            layer, hidden_BSD, self.visual_BS, self.attended_BS, self.requested_BS, attention, self.total_B, self.placed
        )
        keep_BS = method.keep(view)
        if keep_BS.dtype != torch.bool or keep_BS.shape != self.visual_BS.shape:
            raise ValueError(
                f"{type(method).__name__}.keep must return a bool tensor of shape {tuple(self.visual_BS.shape)}, "
                f"got {keep_BS.dtype} {tuple(keep_BS.shape)}"
            )
        keep_BS = (keep_BS.to(self.visual_BS.device) | ~self.visual_BS) & self.attended_BS
        visual_BS = self.visual_BS & self.attended_BS
        sums = torch.stack([keep_BS.sum(1), (keep_BS & visual_BS).sum(1), visual_BS.sum(1)])
        lengths, kept, before = sums.tolist()  # one wait for the device
        if kept == before and not (self.placed is not None and any(kept)):  # compressed tokens are others, if as many
            return None
        for row, (now, then) in enumerate(zip(kept, before, strict=True)):
            if then and not now:
                raise ValueError(f"{type(method).__name__} keeps no visual token in row {row}: keep at least one")
        rows, self.lengths = Rows.of(keep_BS, lengths), lengths
        origin = rows.after(self.groups[-1].rows) if self.groups else rows
        self.groups.append(Group(layer, origin))
        self.visual_BS = rows.take(self.visual_BS) & rows.real_BM
        self.attended_BS = rows.real_BM
        if self.requested_BS is not None:
            self.requested_BS = rows.take(self.requested_BS)
        return rows, kept

    def note_made(self, before_BMD: Tensor, after_BMD: Tensor) -> None:
        """After a prune: which rows hold tokens now that the method made."""
        if after_BMD is before_BMD:
            return
        made_B = (after_BMD != before_BMD).flatten(1).any(1)
        self.made_B = made_B if self.made_B is None else self.made_B | made_B.to(self.made_B.device)

    @cached_property
    def padding(self) -> tuple[bool, bool]:
        """Whether there was padding in the unpruned sequence, and whether a row ended in it. Waits for the device."""
        padded, right_padded = (~torch.stack([self.full_BS.all(), self.full_BS[:, -1].all()])).tolist()
        return padded, right_padded

    def compact(self, unpruned: Unpruned) -> Tensor:
        """Positions of the survivors, renumbered; the last group notes what that means for those behind them."""
        group = self.groups[-1]
        changed_B = group.rows.real_BM.sum(1) < self.full_BS.sum(1)
        if self.placed is not None:
            changed_B = changed_B | (self.all_visual_BS & self.full_BS).any(1)
        position, shift_B = unpruned.compact(group.rows, changed_B, self.made_B)
        self.groups[-1] = replace(group, shift_B=shift_B)
        return position


@dataclass
class Run:
    """State of one forward pass.

    Attributes:
        outer: whether it began at the model with the head, and not at the module below it.
        labels_BS: labels taken out of the call, to be gathered.
        loss_options: further arguments of the loss.
        attention_mask_BS: the 2-D mask of the call.
        position: what the decoder's rotary embedding was given, see `Unpruned`.
        prefill: set in a prefill; `prefix` in a decoding step on a pruned cache; neither where nothing is pruned.
        group: the layer group that `mask` and `rope` belong to.
        packs: whether ragged rows may run packed.
        packing: of the rows as they run now, None where they are padded; `padded_rope` is the `rope` of padded rows.
        cache: of a prefill that prunes.
        attention: of a prefill, what layers that the method watches were given since the last prune.
    """

    outer: bool
    thread: int = field(default_factory=threading.get_ident)
    labels_BS: Tensor | None = None
    loss_options: dict[str, Any] = field(default_factory=dict)
    attention_mask_BS: Tensor | None = None
    position: Tensor | None = None
    prefill: Prefill | None = None
    prefix: Prefix | None = None
    group: Group | None = None
    mask: Tensor | None = None
    rope: Rope | None = None
    packs: bool = False
    packing: Packing | None = None
    padded_rope: Rope | None = None
    cache: PrunedCache | None = None
    attention: dict[int, LayerInput] = field(default_factory=dict)

    @property
    def unpruned(self) -> Unpruned:
        """The sequence of the prefill before anything was dropped."""
        assert self.prefill is not None and self.position is not None
        return Unpruned(self.prefill.full_BS, self.prefill.all_visual_BS, self.position)

    def enter_pruned(self, decoder: Any, hidden_BMD: Tensor, layer: Kwargs, compact: bool) -> None:
        """After a prune: mask and position embeddings of the survivors, from the keyword arguments of the layer."""
        assert self.prefill is not None
        position = self.prefill.compact(self.unpruned) if compact else None
        group = self.prefill.groups[-1]
        rows = group.rows
        attended_BM = rows.real_BM if rows.ragged else None
        mask = layer_mask(decoder.config, hidden_BMD, attended_BM, layer.get("past_key_values"), group.start)
        self.group, self.mask = group, keep_diagonal(mask)
        if position is None:
            self.rope = tuple(rows.take(part) for part in layer["position_embeddings"])
        else:
            self.rope = decoder.rotary_emb(hidden_BMD, position_ids=position)

    def pack(self, hidden_BMD: Tensor) -> Tensor:
        """After `enter_pruned`: the survivors as one sequence (1, P, D) if rows are ragged enough, else as they are."""
        assert self.prefill is not None and self.rope is not None
        self.unpack()
        self.padded_rope = self.rope
        packing = Packing.of(self.prefill.lengths, hidden_BMD.device) if self.packs else None
        if packing is None or packing.waste < WORTH:
            return hidden_BMD
        self.packing, self.mask, self.rope = packing, None, tuple(packing.pack(part) for part in self.rope)
        if self.cache is not None:
            self.cache.packing = packing
        return packing.pack(hidden_BMD)

    def unpack(self) -> None:
        """From now on, rows are padded."""
        self.packing = None
        if self.cache is not None:
            self.cache.packing = None

    def pad(self, hidden: Tensor) -> Tensor:
        """Hidden states as padded rows, however they run."""
        return hidden if self.packing is None else self.packing.pad(hidden)

    def enter_decoding(self, decoder: Any, group: Group, hidden_BTD: Tensor, layer: Kwargs) -> None:
        """In a decoding step: mask over the survivors and what was generated since, positions of the new token."""
        assert self.prefix is not None
        cache = layer["past_key_values"]
        mask_BS, attended_BM = self.attention_mask_BS, None
        if group.rows.ragged or mask_BS is not None:
            new = cache.get_seq_length(group.start) - group.length + hidden_BTD.shape[1]
            real_BM = group.rows.real_BM
            new_BT = real_BM.new_ones(len(real_BM), new) if mask_BS is None else self._new_columns(mask_BS, new)
            attended_BM = torch.cat([real_BM, new_BT.to(real_BM.device)], dim=1)
        self.group = group
        self.mask = layer_mask(decoder.config, hidden_BTD, attended_BM, cache, group.start)
        if group.shift_B is None:
            self.rope = layer["position_embeddings"]
        else:
            assert self.position is not None
            position = self.position - group.shift_B[:, None].to(self.position.device)
            self.rope = decoder.rotary_emb(hidden_BTD, position_ids=position)

    def _new_columns(self, mask_BS: Tensor, new: int) -> Tensor:
        assert self.prefix is not None
        expected = self.prefix.full_length + new
        if mask_BS.shape[1] != expected:
            raise ValueError(
                f"attention_mask has {mask_BS.shape[1]} columns, expected {expected}: the unpruned prompt "
                f"({self.prefix.full_length}) and every token since ({new})"
            )
        return mask_BS[:, -new:].bool()
