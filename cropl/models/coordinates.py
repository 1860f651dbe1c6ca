"""Coordinates one after the other, on top of prompts that lie in a KV cache.

Every coordinate of a region costs one position of the decoder and eight rows of the output embedding; the vocabulary's
other 151,000 rows, which cost more than the decoder itself, are never multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache as computed_once
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cropl.data.packing import Packed
from cropl.grid import GRID, TokenGrid
from cropl.models.inputs import VLMInputs
from cropl.models.packed import decoded, first_positions
from cropl.models.region_distribution import RegionDistribution, coordinates
from cropl.models.vlm import VLM

# B rows, N prompts of a row, Q = B * N prompts, S positions of the prompts, T new tokens of a prompt, P all its new
# tokens, D width, W vocabulary, G coordinates of an axis


@dataclass
class Prompts:
    """Prompts in a cache, each ready for its answer: one per row of an ordinary batch, more in packed rows.

    Attributes:
        vlm: the model.
        cache: its keys and values at the S positions of B rows.
        hidden_BND: last hidden states at the prompts' ends.
        next_BN: position of what follows.
        sees_BNS: which positions of its row that attends to.
    """

    vlm: VLM
    cache: Any
    hidden_BND: Tensor
    next_BN: Tensor
    sees_BNS: Tensor
    _added: list[int] = field(default_factory=list)

    def extend(self, ids_BNT: Tensor, depth_T: Tensor, sees_TP: Tensor) -> Tensor:
        """Add tokens behind every prompt; their hidden states (B, N, T, D). No prompt sees the tokens of another.

        Args:
            ids_BNT: the tokens.
            depth_T: how far behind the prompt each stands; several may stand at the same place.
            sees_TP: which tokens of its own prompt each sees: those added before, then these.
        """
        _, prompts, new = ids_BNT.shape
        position_BC = (self.next_BN[..., None] + depth_T.to(self.next_BN.device)).flatten(1)
        hidden = self.vlm.decoder(
            input_ids=ids_BNT.flatten(1), attention_mask=self._mask(prompts, sees_TP), position_ids=position_BC,
            past_key_values=self.cache, use_cache=True,
        ).last_hidden_state  # fmt: skip
        self._added.append(new)
        return hidden.unflatten(1, (prompts, new))

    def _mask(self, prompts: int, sees_TP: Tensor) -> Tensor:
        new, device = len(sees_TP), self.sees_BNS.device
        if prompts == new == 1 and sees_TP.all():  # an ordinary step of decoding, which every kernel of attention knows
            return F.pad(self.sees_BNS[:, 0].long(), (0, sees_TP.shape[1]), value=1)
        parts = sees_TP.to(device).split([*self._added, new], dim=1)
        each_NN = torch.eye(prompts, dtype=torch.bool, device=device)
        own = torch.cat([torch.kron(each_NN, part) for part in parts], dim=1)
        sees = torch.cat([self.sees_BNS.repeat_interleave(new, dim=1), own.expand(len(self.sees_BNS), -1, -1)], dim=2)
        dtype = self.hidden_BND.dtype
        bias = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill(~sees, torch.finfo(dtype).min)
        return bias[:, None]

    def step(self, ids_BN: Tensor) -> Tensor:
        """Add one token behind each prompt and what was added there; its hidden state (B, N, D)."""
        before = len(self._added)
        return self.extend(ids_BN[..., None], torch.tensor([before]), torch.ones(1, before + 1, dtype=torch.bool))[
            :, :, 0
        ]

    def head(self, ids: Tensor | None = None) -> Tensor:
        """Rows of the output embedding, of these ids or all, in at least single precision.

        In half precision a logit of 20 is known to an eighth, which would show in the probabilities.
        """
        weight: Any = self.vlm.model.get_output_embeddings().weight
        weight = weight.full_tensor() if hasattr(weight, "full_tensor") else weight  # sharded over processes
        rows = weight if ids is None else weight[ids.to(weight.device)]
        return rows.to(torch.promote_types(self.hidden_BND.dtype, torch.float32))


def prefill(vlm: VLM, inputs: VLMInputs) -> Prompts:
    """Run the prompts of a batch through the model, once.

    The positions are handed in, so that nothing of a model that remembers them (Qwen2-VL's `rope_deltas`) changes.
    """
    position_RBS, next_B = positions(vlm, inputs)
    device = inputs.tensors["input_ids"].device
    position_ids = position_RBS.to(device) if len(position_RBS) > 1 else position_RBS[0].to(device)
    made: Any = vlm.base(**inputs.kwargs(), position_ids=position_ids, use_cache=True)
    sees_B1S = inputs.tensors["attention_mask"].bool()[:, None]
    return Prompts(vlm, made.past_key_values, made.last_hidden_state[:, -1:], next_B[:, None].to(device), sees_B1S)


def positions(vlm: VLM, inputs: VLMInputs) -> tuple[Tensor, Tensor]:
    """Position ids (R, B, S) of left-padded prompts with one image each, 0 at the padding, and of what follows (B,)."""
    ids_BS, mask_BS = inputs.tensors["input_ids"].cpu(), inputs.tensors["attention_mask"].cpu().bool()
    rows, follows = [], []
    for ids_S, mask_S, grid in zip(ids_BS, mask_BS, inputs.grids, strict=True):
        visual = vlm.visual_mask(ids_S[mask_S])
        before, behind = int(visual.int().argmax()), len(visual) - int(visual.sum()) - int(visual.int().argmax())
        if not isinstance(grid, TokenGrid):
            raise ValueError(f"{type(vlm).__name__} lays its visual tokens on several grids: it cannot localize")
        image_RV = vlm.visual_positions(before, (grid.rows, grid.cols), torch.arange(grid.num_tokens))
        end = int(image_RV.max()) + 1
        parts = [torch.arange(before).expand(len(image_RV), -1), image_RV]
        parts.append(torch.arange(end, end + behind).expand(len(image_RV), -1))
        row_RS = torch.zeros(len(image_RV), len(ids_S), dtype=torch.long)
        row_RS[:, mask_S] = torch.cat(parts, dim=1)
        rows.append(row_RS)
        follows.append(end + behind)
    return torch.stack(rows, dim=1), torch.tensor(follows)


def prefill_packed(vlm: VLM, packed: Packed, features: Sequence[Tensor]) -> Prompts:
    """The same for packed rows: each turn is a prompt up to its answer, whose tokens are there but nobody sees them.

    Rows with fewer turns than others are filled up with prompts that mean nothing.

    Args:
        vlm: the model.
        packed: rows of documents, each turn of which has an answer.
        features: visual tokens as for :func:`~cropl.models.packed.packed_hidden`.
    """
    row_Q, position_Q, turn_Q = first_positions(packed)
    at_BN = torch.zeros(len(packed.input_ids_BS), int(turn_Q.max()) + 1, dtype=torch.long, device=row_Q.device)
    at_BN[row_Q, turn_Q] = position_Q
    row_B1 = torch.arange(len(at_BN), device=at_BN.device)[:, None]
    made = decoded(vlm, packed, features, use_cache=True)
    next_BN = packed.position_ids_RBS[0][row_B1, at_BN] + 1  # of text, where all rows of position ids are alike
    sees_BNS = packed.mask_B1SS[:, 0][row_B1, at_BN]
    return Prompts(vlm, made.past_key_values, made.last_hidden_state[row_B1, at_BN], next_BN, sees_BNS)


def decode_freely(prompts: Prompts, steps: int) -> Tensor:
    """Greedy token ids (B, N, steps), also behind the end of an answer: all processes take equally many steps."""
    head, hidden_BND = prompts.vlm.model.get_output_embeddings(), prompts.hidden_BND
    chosen: list[Tensor] = []
    while len(chosen) < steps:
        if chosen:
            hidden_BND = prompts.step(chosen[-1])
        chosen.append(head(hidden_BND).argmax(-1))
    return torch.stack(chosen, dim=-1)


def decode(prompts: Prompts, ids_2G: Tensor, coverage: float = 0.0) -> tuple[Tensor, Tensor]:
    """Four constrained steps: coordinates (B, N, 4) of valid regions, and their joint probabilities (B, N).

    Args:
        prompts: what is asked.
        ids_2G: token ids of the coordinates of x and of y.
        coverage: see :func:`~cropl.models.region_distribution.coordinates`.
    """
    rows_2GD, hidden_BND = prompts.head(ids_2G), prompts.hidden_BND
    ids_2G = ids_2G.to(hidden_BND.device)
    chosen: list[Tensor] = []
    log_p = torch.zeros(hidden_BND.shape[:2], dtype=torch.double, device="cpu")
    for step in range(4):
        scores_QG = F.linear(hidden_BND.flatten(0, 1).to(rows_2GD.dtype), rows_2GD[step % 2])
        if step >= 2:
            lower_QG = torch.arange(GRID, device=scores_QG.device) < chosen[step - 2].flatten()[:, None]
            scores_QG = scores_QG.masked_fill(lower_QG, float("-inf"))
        chosen_Q = coordinates(scores_QG, step, coverage)
        log_p += scores_QG.cpu().double().log_softmax(1).gather(1, chosen_Q.cpu()[:, None]).view(log_p.shape)
        chosen.append(chosen_Q.view(hidden_BND.shape[:2]))
        if step < 3:
            hidden_BND = prompts.step(ids_2G[step % 2][chosen[-1]])
    return torch.stack(chosen, dim=-1).cpu(), log_p.exp()


@dataclass(frozen=True)
class _Tree:
    """The coordinate prefixes x_min (8), x_min y_min (64) and x_min y_min x_max (288), as nodes of one tree."""

    axis_T: Tensor
    coordinate_T: Tensor
    depth_T: Tensor
    ancestors_TT: Tensor
    triples: Tensor


@computed_once
def _tree() -> _Tree:
    prefixes: list[tuple[int, ...]] = [(x,) for x in range(GRID)]
    prefixes += [(x, y) for x in range(GRID) for y in range(GRID)]
    triples = [(x, y, u) for x in range(GRID) for y in range(GRID) for u in range(x, GRID)]
    prefixes += triples
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    ancestors_TT = torch.zeros(len(prefixes), len(prefixes), dtype=torch.bool)
    for prefix, i in number.items():
        ancestors_TT[i, [number[prefix[:length]] for length in range(1, len(prefix) + 1)]] = True
    depth_T = torch.tensor([len(prefix) - 1 for prefix in prefixes])
    coordinate_T = torch.tensor([prefix[-1] for prefix in prefixes])
    return _Tree(depth_T % 2, coordinate_T, depth_T, ancestors_TT, torch.tensor(triples))


def distribution(prompts: Prompts, ids_2G: Tensor) -> RegionDistribution:
    """Joint probabilities of all rectangles, for the B * N prompts in turn: one forward of 360 tokens behind each.

    The 360 are every prefix of a region that a fourth coordinate can follow, and each attends to its own ancestors
    alone: the logits are those of 288 separate answers, and the prompt is neither run again nor copied.
    """
    tree, (rows, count) = _tree(), prompts.hidden_BND.shape[:2]
    rows_2GD = prompts.head(ids_2G)
    ids_T = ids_2G.cpu()[tree.axis_T, tree.coordinate_T].to(prompts.hidden_BND.device)
    hidden_BNTD = prompts.extend(ids_T.expand(rows, count, -1), tree.depth_T, tree.ancestors_TT)
    hidden_QTD = torch.cat([prompts.hidden_BND[:, :, None], hidden_BNTD], dim=2).flatten(0, 1).to(rows_2GD.dtype)
    of_x_QTG, of_y_QTG = (F.linear(hidden_QTD, rows_GD) for rows_GD in rows_2GD)
    last_QXYUG = of_y_QTG.new_zeros(len(hidden_QTD), *[GRID] * 4)
    last_QXYUG[:, tree.triples[:, 0], tree.triples[:, 1], tree.triples[:, 2]] = of_y_QTG[:, 73:]
    shape = (GRID, GRID)
    return RegionDistribution.from_logits(
        of_x_QTG[:, 0], of_y_QTG[:, 1:9], of_x_QTG[:, 9:73].unflatten(1, shape), last_QXYUG
    )
