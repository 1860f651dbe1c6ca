"""Training forward over packed questions (:mod:`cropl.data.packing`) for any family.

Prompts are those of inference, taken apart at the picture: what precedes the visual tokens is the row's prefix, what
follows is the turn's prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cropl.data.packing import Packed, Turn, pack
from cropl.models.vlm import VLM

# B rows, S length, V visual tokens of a picture, D width, R rows of position ids, T supervised tokens


class PackedPrompts:
    """Tokenises pictures' prefixes and turns for one model.

    Args:
        vlm: the model with its processor.
    """

    def __init__(self, vlm: VLM):
        self.vlm, self.tokenizer, self.image_id = vlm, vlm.tokenizer, vlm.image_token_id
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        self.end, self.pad_id = [end], end if pad is None else pad

    def turn(self, question: str, answer: str) -> Turn:
        """The tokens behind the picture, and the supervised answer with its end-of-turn token."""
        prompt = self.vlm.prompt_ids(question)
        after = prompt[prompt.index(self.image_id) + 1 :]
        return Turn(after, self.tokenizer(answer, add_special_tokens=False)["input_ids"] + self.end)

    def prefix(self, grid: tuple[int, int], keep_V: Tensor | None = None) -> tuple[list[int], Tensor]:
        """Ids up to and with the visual tokens of a (rows, columns) token grid, and their positions (R, length).

        ``keep_V``: indices of the visual tokens that stay, at their own positions; all where it is not given.
        """
        prompt = self.vlm.prompt_ids("?")
        before = prompt[: prompt.index(self.image_id)]
        cell_V = torch.arange(grid[0] * grid[1]) if keep_V is None else keep_V
        visual_RV = self.vlm.visual_positions(len(before), grid, cell_V)
        text_RS = torch.arange(len(before)).expand(len(visual_RV), -1)
        return before + [self.image_id] * len(cell_V), torch.cat([text_RS, visual_RV], dim=1)

    def pack(self, prefixes: Sequence[tuple[list[int], Tensor]], turns: Sequence[Sequence[Turn]]) -> Packed:
        """Rows of one picture and its turns each."""
        return pack([ids for ids, _ in prefixes], [positions for _, positions in prefixes], turns, self.pad_id)


def first_positions(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Row, position and turn (each (T,)) of the token that predicts each answer's first token, row by row."""
    row_T, position_T = (packed.turn_BS >= 0).nonzero(as_tuple=True)
    turn_T = packed.turn_BS[row_T, position_T]
    new = torch.ones_like(turn_T, dtype=torch.bool)
    new[1:] = (turn_T[1:] != turn_T[:-1]) | (row_T[1:] != row_T[:-1])
    return row_T[new], position_T[new], turn_T[new]


def packed_logits(vlm: VLM, packed: Packed, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (T, vocabulary) at the supervised positions, row by row, and their targets (T,).

    Args:
        vlm: the model.
        packed: the rows; the number of placeholders in row b is the length of ``features[b]``.
        features: visual tokens of each row, (V, D).
    """
    embeds_BSD = vlm.model.get_input_embeddings()(packed.input_ids_BS)
    visual_BS1 = vlm.visual_mask(packed.input_ids_BS)[..., None]
    embeds_BSD = embeds_BSD.masked_scatter(visual_BS1, torch.cat(list(features)).to(embeds_BSD.dtype))
    positions = packed.position_ids_RBS if len(packed.position_ids_RBS) > 1 else packed.position_ids_RBS[0]
    hidden_BSD = vlm.decoder(
        inputs_embeds=embeds_BSD, attention_mask=packed.mask_B1SS, position_ids=positions, use_cache=False
    ).last_hidden_state
    supervised_BS = packed.turn_BS >= 0
    return vlm.model.get_output_embeddings()(hidden_BSD[supervised_BS]), packed.labels_BS[supervised_BS]
