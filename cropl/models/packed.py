"""Training forward over packed documents (:mod:`cropl.data.packing`) for any family.

Conversations are those of inference, taken apart at the picture: what precedes the visual tokens is the document's
prefix, what follows is its turn. A text without a picture has no prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cropl.data.packing import Document, Packed, Turn, pack
from cropl.models.token_losses import correct_tokens, token_losses
from cropl.models.vlm import VLM

# B rows, S length, V visual tokens of a picture, D width, R rows of position ids, T supervised tokens


class PackedPrompts:
    """Tokenises pictures' prefixes and turns for one model.

    Args:
        vlm: the model with its processor.

    Raises:
        ValueError: the model's attention takes no mask of pairs of positions.
    """

    def __init__(self, vlm: VLM):
        self.vlm, self.tokenizer, self.image_id = vlm, vlm.tokenizer, vlm.image_token_id
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        self.pad_id = end if pad is None else pad
        kernel = vlm.decoder.config._attn_implementation
        if kernel != "sdpa":
            raise ValueError(f"attn_implementation {kernel!r}: training on packed rows needs 'sdpa'")

    def turn(self, turns: Sequence[tuple[str, str]], image: bool = True, clean: bool = True) -> Turn:
        """The tokens of a conversation behind its picture, or all of them without one.

        ``clean`` as for :meth:`VLM.render`.
        """
        whole = self.vlm.conversation(turns, image, clean)
        if not image:
            return whole
        start = whole.ids.index(self.image_id) + 1
        first, last = whole.question
        return Turn(whole.ids[start:], whole.labels[start:], (max(0, first - start), max(0, last - start)))

    def prefix(self, grid: tuple[int, int] | None, keep_V: Tensor | None = None) -> tuple[list[int], Tensor]:
        """Ids up to and with the visual tokens of a (rows, columns) token grid, and their positions (R, length).

        ``keep_V``: indices of the visual tokens that stay, at their own positions; all where it is not given. Without
        a grid, that is without a picture, both are empty.
        """
        if grid is None:
            return [], self.vlm.visual_positions(0, (1, 1), torch.arange(0))
        prompt = self.vlm.prompt_ids("?")
        before = prompt[: prompt.index(self.image_id)]
        cell_V = torch.arange(grid[0] * grid[1]) if keep_V is None else keep_V
        visual_RV = self.vlm.visual_positions(len(before), grid, cell_V)
        text_RS = torch.arange(len(before)).expand(len(visual_RV), -1)
        return before + [self.image_id] * len(cell_V), torch.cat([text_RS, visual_RV], dim=1)

    def pack(self, rows: Sequence[Sequence[Document]]) -> Packed:
        """Rows of documents."""
        return pack(rows, self.pad_id)


def places(packed: Packed) -> tuple[Tensor, Tensor]:
    """Row and turn (each (T,)) of every supervised position, row by row: of what the functions below return."""
    row_T, position_T = (packed.turn_BS >= 0).nonzero(as_tuple=True)
    return row_T, packed.turn_BS[row_T, position_T]


def first_positions(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Row, position and turn (each (T,)) of the token that predicts each turn's first answer token, row by row."""
    row_T, position_T = (packed.turn_BS >= 0).nonzero(as_tuple=True)
    turn_T = packed.turn_BS[row_T, position_T]
    new = torch.ones_like(turn_T, dtype=torch.bool)
    new[1:] = (turn_T[1:] != turn_T[:-1]) | (row_T[1:] != row_T[:-1])
    return row_T[new], position_T[new], turn_T[new]


def packed_logits(vlm: VLM, packed: Packed, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (T, vocabulary) at the supervised positions, row by row, and their targets (T,).

    Arguments and errors are those of :func:`decoded`.
    """
    hidden_TD, targets_T = packed_hidden(vlm, packed, features)
    return vlm.model.get_output_embeddings()(hidden_TD), targets_T


def packed_losses(vlm: VLM, packed: Packed, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Loss (T,), float32, of each supervised token, row by row, and whether it would be the greedy answer's, bool (T,).

    The logits are never there as a whole, see :mod:`~cropl.models.token_losses`. Arguments and errors are those of
    :func:`decoded`, and ValueError if the vocabulary head is no linear layer (it has an adapter, for example).
    """
    head = vlm.model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"the vocabulary head is a {type(head).__name__}: to train, it must be a plain linear layer")
    hidden_TD, targets_T = packed_hidden(vlm, packed, features)
    given = hidden_TD, head.weight, targets_T, head.bias
    return token_losses(*given), correct_tokens(*given)


def packed_hidden(vlm: VLM, packed: Packed, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states (T, D) at the supervised positions, row by row, and the targets (T,) that they predict.

    Arguments and errors are those of :func:`decoded`.
    """
    supervised_BS = packed.turn_BS >= 0
    return decoded(vlm, packed, features).last_hidden_state[supervised_BS], packed.labels_BS[supervised_BS]


def decoded(vlm: VLM, packed: Packed, features: Sequence[Tensor], use_cache: bool = False) -> Any:
    """The decoder's output: ``last_hidden_state`` (B, S, D), normalised, and its cache where it is asked for.

    Args:
        vlm: the model.
        packed: the rows.
        features: visual tokens (V, D) of each picture in the rows, row by row, in the order of their documents.

    Raises:
        ValueError: the rows have another number of placeholders than there are visual tokens.
    """
    embeds_BSD = vlm.model.get_input_embeddings()(packed.input_ids_BS)
    visual_BS = vlm.visual_mask(packed.input_ids_BS)
    wanted, given = int(visual_BS.sum()), sum(map(len, features))
    if wanted != given:
        raise ValueError(f"the rows have {wanted} image placeholders, and there are {given} visual tokens for them")
    if features:
        placed_ND = torch.cat(list(features)).to(embeds_BSD.dtype)
        embeds_BSD = embeds_BSD.masked_scatter(visual_BS[..., None], placed_ND)
    positions = packed.position_ids_RBS if len(packed.position_ids_RBS) > 1 else packed.position_ids_RBS[0]
    return vlm.decoder(
        inputs_embeds=embeds_BSD, attention_mask=packed.mask_B1SS, position_ids=positions, use_cache=use_cache
    )
