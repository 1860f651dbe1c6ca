"""LoRA: low-rank adapters beside the decoder's linear layers, which stay as they are (through ``peft``).

The decoder is changed in place, so that everything that knows its layers (pruning, packed rows, generation) goes on as
before. Of the embedding table, a model with adapters trains no more than the rows of tokens that are new to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cropl.extras import remedy
from cropl.models.vlm import VLM

# N rows that are trained, W rows of the embedding table, D width

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Llama's or a Qwen2's decoder layer."""

_NAME, _TABLE = "default", "parametrizations.weight"  # in the names of weights: an adapter's, a table's with its rows


def add_lora(
    vlm: VLM, rank: int = 16, alpha: int = 32, dropout: float = 0.05, targets: Sequence[str] = LINEARS
) -> None:
    """Freeze the whole model and put trainable adapters, float32, beside linear layers of its decoder.

    At first the model answers exactly as before: an adapter starts at zero.

    Args:
        vlm: the model; its decoder is changed in place.
        rank: columns of an adapter's matrices.
        alpha: adapters are scaled by ``alpha / rank``.
        dropout: on what adapters read, in training.
        targets: names of the linear layers, as in ``self_attn.q_proj``; the last part is enough.

    Raises:
        ValueError: ``peft`` is not installed, a layer of that name does not exist, a number is out of its range, or
            the model has adapters already.
    """
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ValueError(
            f"lora rank {rank}, alpha {alpha}, dropout {dropout}: give a rank of at least 1, a positive alpha, and a "
            "dropout from 0 to below 1"
        )
    if has_lora(vlm.model):
        raise ValueError("this model has LoRA adapters already: merge them first (`cropl export`)")
    linears = [name for name, module in vlm.decoder.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linears):
            known = sorted({name.rpartition(".")[2] for name in linears})
            raise ValueError(f"lora targets: the decoder has no linear layer {target!r}; it has {', '.join(known)}")
    if not targets:
        raise ValueError(f"lora targets: name linear layers of the decoder, such as {', '.join(LINEARS)}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"LoRA needs peft ({error}): {remedy('lora')}") from error
    vlm.model.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), bias="none")
    inject_adapter_in_model(config, vlm.decoder, _NAME)
    for name, parameter in vlm.decoder.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # peft takes the base's type, in which small steps are lost


def has_lora(model: nn.Module) -> bool:
    """Whether linear layers of the model have adapters."""
    return any(name.endswith(".base_layer") for name, _ in model.named_modules())


def train_rows(vlm: VLM, ids: Sequence[int] | Tensor) -> None:
    """Train these rows of the embedding table, from their present values, and no other.

    They become a parameter of their own, so that the table, also as the head that is tied to it, needs neither
    gradients nor optimizer state, and its other rows stay as they are, bit for bit. An untied head has its own.

    Args:
        vlm: the model, which knows the tokens already.
        ids: of the tokens.

    Raises:
        ValueError: an id lies outside the table, or rows are trained already.
    """
    ids_N = torch.as_tensor(ids, dtype=torch.long).unique()
    rows: dict[int, _Rows] = {}
    for table in (vlm.model.get_input_embeddings(), vlm.model.get_output_embeddings()):
        if parametrize.is_parametrized(table):
            raise ValueError("rows of this model's embedding table are trained already: name them all at once")
        weight_WD = table.weight
        if not len(ids_N) or int(ids_N.min()) < 0 or int(ids_N.max()) >= len(weight_WD):
            raise ValueError(f"token ids {ids_N.tolist()} are not all among the table's {len(weight_WD)} rows")
        weight_WD.requires_grad_(False)
        shared = rows.setdefault(id(weight_WD), _Rows(ids_N.to(weight_WD.device), weight_WD[ids_N].detach()))
        parametrize.register_parametrization(table, "weight", shared, unsafe=True)


class _Rows(nn.Module):
    """A table with these rows in the place of its own."""

    ids_N: Tensor

    def __init__(self, ids_N: Tensor, rows_ND: Tensor) -> None:
        super().__init__()
        self.register_buffer("ids_N", ids_N, persistent=False)
        self.rows = nn.Parameter(rows_ND.float().clone())

    def forward(self, table_WD: Tensor) -> Tensor:
        return table_WD.index_copy(0, self.ids_N, self.rows.to(table_WD.dtype))


def plain_state(model: nn.Module, state: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """A state dict of ``model`` under the names of the model without adapters, which are merged into its weights.

    Args:
        model: the model with adapters, or with trained rows, or with neither; it is left as it is.
        state: its weights, whole ones (not those of a shard).
        dtype: of weights with something merged into them, which are rounded to it once, from float32; None is that of
            the base's. Other weights are as they were.
    """
    plain = dict(state)
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(getattr(module, "base_layer", None), nn.Linear):
            down, up = (plain.pop(f"{prefix}lora_{side}.{_NAME}.weight") for side in "AB")
            scaling: Any = module.scaling
            for key in ("weight", "bias"):
                if (kept := plain.pop(f"{prefix}base_layer.{key}", None)) is not None:
                    plain[prefix + key] = kept
            weight = plain[f"{prefix}weight"]
            merged = weight.float() + scaling[_NAME] * (up.float() @ down.float())
            plain[f"{prefix}weight"] = merged.to(dtype or weight.dtype)
        elif f"{prefix}{_TABLE}.original" in plain:
            table_WD, rows_ND = plain.pop(f"{prefix}{_TABLE}.original"), plain.pop(f"{prefix}{_TABLE}.0.rows")
            ids_N = model.get_buffer(f"{prefix}{_TABLE}.0.ids_N").to(table_WD.device)
            table_WD = table_WD.to(dtype or table_WD.dtype)
            plain[f"{prefix}weight"] = table_WD.index_copy(0, ids_N, rows_ND.to(table_WD.device, table_WD.dtype))
    return plain
