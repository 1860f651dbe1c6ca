"""SparseVLM (Zhang et al., ICML 2025), v1.5 and SparseVLM+: visual tokens rated by the words that depend on the image.

Shapes: B rows, S positions, T raters, V visual tokens, N recycled tokens, C clusters, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cropl.budget import Meaning
from cropl.pruning.base import DecoderView, InnerLLM, Positions, check_layer, check_positions
from cropl.pruning.select import Amount, average, best, bisected, check_tokens, rating_flops, scaled_layers, wanted

if TYPE_CHECKING:
    from typing_extensions import Self


PUBLISHED_TOTAL = 576
PUBLISHED = {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}
"""Tokens kept behind each rating layer, by what the paper calls the budget."""
PUBLISHED_PLUS = {192: (300, 200, 118), 128: (238, 108, 60), 64: (66, 34, 20)}
"""The same of SparseVLM+."""


class SparseVLM(InnerLLM):
    """Behind chosen layers, keeps the visual tokens that raters attend to most, and recycles some of the others.

    Raters are the words behind the image with more than the average share in a softmax of the products between visual
    and text embeddings. A layer's score of a visual token is its attention, averaged over heads and raters. Of the
    dropped tokens the best `recycle` share is clustered by density peaks, ten to a cluster, and each cluster's mean
    joins the survivors behind the last of them.

    Args:
        kept: how many stay behind each layer: counts, or shares in (0, 1] of the row's own tokens. Published for
            576 tokens are 300, 200, 110 (called 192), 303, 110, 36 (128) and 66, 30, 17 (64).
        layers: 0-based layers that rate, ascending; what they drop is gone from the layer behind them on.
        recycle: share of the dropped tokens that is merged; 0 merges none (SparseVLM+: 300, 200, 118; 238, 108, 60;
            66, 34, 20).
        positions: None is "compact" with recycling, as in v1.5, and "original" without, as in SparseVLM+.
    """

    def __init__(
        self,
        kept: Sequence[Amount] = (300, 200, 110),
        layers: Sequence[int] = (2, 6, 15),
        recycle: float = 0.3,
        positions: Positions | None = None,
    ) -> None:
        if len(kept) != len(layers) or not layers or list(layers) != sorted(set(layers)):
            raise ValueError(
                f"kept={tuple(kept)}, layers={tuple(layers)}: give ascending layers, and a number for each"
            )
        if not 0 <= recycle < 1:
            raise ValueError(f"recycle={recycle!r}: must be a share in [0, 1)")
        self.kept = tuple(check_tokens(tokens) for tokens in kept)
        self.rating = tuple(check_layer(layer) for layer in layers)
        self.recycle = float(recycle)
        self.positions = check_positions(positions or ("compact" if recycle else "original"))
        if self.recycle and self.positions == "original":
            raise ValueError(
                "positions='original' does not go with recycling: a merged token has no position of its own"
            )
        self._raters: list[Tensor] = []  # of each row: which of its text tokens
        self._merged: Tensor | None = None

    @classmethod
    def for_budget(
        cls,
        tokens: float,
        total: float,
        meaning: Meaning,
        num_layers: int,
        layers: Sequence[int] | None = None,
        recycle: float = 0.3,
        **options: Any,
    ) -> Self:
        """The method that meets a budget of `tokens` out of `total`: a published list, all its numbers scaled alike.

        Recycled tokens count, since layers compute them. The list is that of the nearest published budget.

        Args:
            tokens: mean tokens behind the last stage ("post_prune"), or per layer ("layer_average").
            total: visual tokens of an image, or their mean.
            meaning: of `tokens`.
            num_layers: L.
            layers: that rate; None is (2, 6, 15), published for 32 layers, in proportion.
            recycle, options: as for the class.

        Raises:
            InfeasibleBudget: no such list meets it.
        """
        if layers is None:
            layers = [layer - 1 for layer in scaled_layers((3, 7, 16), num_layers)]
        published = PUBLISHED if recycle else PUBLISHED_PLUS
        nearest = min(published, key=lambda budget: abs(math.log(budget / PUBLISHED_TOTAL * total / tokens)))
        if len(layers) != len(published[nearest]):
            raise ValueError(f"layers={tuple(layers)}: a budget needs {len(published[nearest])} layers, or give kept")
        shape = [kept / max(published[nearest]) for kept in published[nearest]]

        def kept(factor: float) -> list[float]:
            # At factor 1 every stage keeps all.
            return [max(min(share * factor / min(shape), 1.0), 1 / total) for share in shape]

        def met(factor: float) -> float:
            stages, living = [], round(total)
            for share in kept(factor):
                survivors = min(wanted(share, round(total)), living)
                living = survivors + (_clusters(_recycled(recycle, living - survivors)) if recycle else 0)
                stages.append(living)
            behind = [layer + 1 for layer in layers]
            return stages[-1] if meaning == "post_prune" else average(stages, behind, total, num_layers)

        return cls(kept(bisected(met, tokens)), layers, recycle, **options)

    @property
    def name(self) -> str:
        return "sparsevlm" if self.recycle else "sparsevlm+"

    @property
    def layers(self) -> tuple[int, ...]:
        return (0, *(layer + 1 for layer in self.rating))  # raters are found among the embeddings

    @property
    def watches(self) -> tuple[int, ...]:
        return self.rating

    def flops(self, config: Any, total: int, visual_L: Sequence[int], text: int) -> int:
        """As many raters as there is text: how many there really are depends on the words."""
        stages = [layer for layer in self.rating if layer + 1 < len(visual_L)]
        rating = sum(rating_flops(config, visual_L[layer] + text, text) for layer in stages)
        merged = [_recycled(self.recycle, visual_L[layer] - visual_L[layer + 1]) for layer in stages]
        clustering = 2 * config.hidden_size * sum(count * (count + _clusters(count)) for count in merged)
        return rating + clustering + 2 * config.hidden_size * total * text

    def keep(self, view: DecoderView) -> Tensor:
        self._merged = None
        if view.layer == 0:
            self._raters = [self._find_raters(view, row) for row in range(len(view.total_B))]
            return view.attended_BS
        stage = self.layers.index(view.layer) - 1
        score_BS, living_BS = self._scores(view), view.living_BS.to(view.hidden_BSD.device)
        counts = [fitting(self.kept[stage], total) for total in view.total_B]
        keep_BS = best(score_BS, living_BS, counts)
        return self._recycled(view, score_BS, living_BS, keep_BS) if self.recycle else keep_BS

    def rewrite(self, hidden_BMD: Tensor, visual_BM: Tensor) -> Tensor:
        if self._merged is None:
            return hidden_BMD
        merged, self._merged = self._merged.to(hidden_BMD.dtype), None
        return hidden_BMD.masked_scatter(visual_BM.to(hidden_BMD.device)[..., None], merged)

    def _find_raters(self, view: DecoderView, row: int) -> Tensor:
        """Bool: which text tokens of the row rate, in their order; none where there is no image."""
        device = view.hidden_BSD.device
        text_S = (view.attended_BS[row] & ~view.visual_BS[row]).to(device)
        visual_S = view.living_BS[row].to(device)
        behind_S = text_S & (visual_S.flip(0).cumsum(0).flip(0) == 0)
        if not visual_S.any() or not behind_S.any():
            return torch.zeros(int(text_S.sum()), dtype=torch.bool)
        hidden_SD = view.hidden_BSD[row].float()
        share_VT = (hidden_SD[visual_S] @ hidden_SD[behind_S].T).softmax(1)
        mean_T = share_VT.mean(0)
        rates_T = mean_T > mean_T.mean()
        rates_S = torch.zeros_like(text_S)
        rates_S[behind_S] = rates_T if rates_T.any() else torch.ones_like(rates_T)
        return rates_S[text_S]

    def _scores(self, view: DecoderView) -> Tensor:
        """Attention BS of the layer that has just run, averaged over heads and raters; text alone rates nothing."""
        text_BS = view.attended_BS & ~view.visual_BS
        found = [text_S.nonzero()[:, 0] for text_S in text_BS]
        rows = [
            place[rates.to(place.device)] if rates.any() else view.last_B[row][None]
            for row, (place, rates) in enumerate(zip(found, self._raters, strict=True))
        ]
        rates_BT = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        # Filled up with a position that is the row's own: one in its padding would see nothing, and score NaN.
        position_BT = torch.stack([row[torch.arange(rates_BT.shape[1]).clamp(max=len(row) - 1)] for row in rows])
        attention_BTS = view.attention(view.layer - 1).mean(position_BT, view.attended_BS)
        rates_BT1 = rates_BT[..., None].to(attention_BTS)
        return (attention_BTS * rates_BT1).sum(1) / rates_BT1.sum(1)

    def _recycled(self, view: DecoderView, score_BS: Tensor, living_BS: Tensor, keep_BS: Tensor) -> Tensor:
        """The first visual positions of each row, as many as it has survivors and clusters, which come into them."""
        left_BS = living_BS & ~keep_BS
        dropped = left_BS.sum(1).tolist()
        recycled_BS = best(score_BS, left_BS, [_recycled(self.recycle, count) for count in dropped])
        tokens: list[Tensor] = []
        for row in range(len(dropped)):
            hidden_SD = view.hidden_BSD[row]
            tokens.append(torch.cat([hidden_SD[keep_BS[row]], clustered(hidden_SD[recycled_BS[row]])]))
        self._merged = torch.cat(tokens)
        count_B1 = torch.tensor([len(row) for row in tokens], device=living_BS.device)[:, None]
        return living_BS & (living_BS.cumsum(1) <= count_B1)


def _recycled(share: float, dropped: int) -> int:
    """How many of the dropped tokens are merged."""
    return int(share * dropped) + 1 if dropped else 0


def _clusters(count: int) -> int:
    """Into how many."""
    return count // 10 + 1 if count else 0


def fitting(tokens: Amount, total: int) -> int:
    """As :func:`wanted`, but all of a picture that has fewer."""
    return total if isinstance(tokens, int) and tokens > total else wanted(tokens, total)


def clustered(token_ND: Tensor) -> Tensor:
    """Means (C, D) of the int(N / 10) + 1 clusters of tokens, by density peaks; deterministic.

    A token's density is exp(-mean squared distance to its C nearest, itself included), distances being L2 / sqrt(D).
    Centres are dense and far from what is denser; every other token joins the nearest centre.
    """
    if not len(token_ND):
        return token_ND
    clusters = _clusters(len(token_ND))
    exact_ND = token_ND.float() if token_ND.dtype != torch.float64 else token_ND
    # Centred, products lose little to cancellation, and they are many times as fast as differences.
    centred_ND = exact_ND - exact_ND.mean(0)
    distance_NN = torch.cdist(centred_ND, centred_ND, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(0)
    # The same both ways to the last bit: tokens that are each other's nearest may be equally dense, and neither denser.
    distance_NN = (distance_NN + distance_NN.T) / (2 * token_ND.shape[1] ** 0.5)
    density_N = (-distance_NN.topk(clusters, largest=False).values.square().mean(1)).exp()
    denser_NN = density_N[None] > density_N[:, None]
    parent_N = distance_NN.masked_fill(~denser_NN, float("inf")).amin(1)
    parent_N = parent_N.where(parent_N.isfinite(), distance_NN.max())
    center_C = (density_N * parent_N).argsort(descending=True, stable=True)[:clusters]
    member_N = distance_NN[:, center_C].argmin(1)
    member_N[center_C] = torch.arange(clusters, device=member_N.device)  # a centre is of its own cluster
    one_CN = (member_N == torch.arange(clusters, device=member_N.device)[:, None]).to(exact_ND.dtype)
    return ((one_CN @ exact_ND) / one_CN.sum(1, keepdim=True)).to(token_ND.dtype)
