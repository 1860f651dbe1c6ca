"""A parcel holds what was packed, in one block of shared memory."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from cropl.data.parcel import ALIGNMENT, pack, unpack


def test_everything_arrives() -> None:
    wide = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    made: dict[str, Any] = {
        "pixels": [wide, wide.transpose(0, 2), wide[:, 1]],
        "evidence": [torch.tensor([True, False, True]).expand(2, -1), torch.zeros(0, 3), torch.tensor(7)],
        "halves": (torch.ones(3, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int64)),
        "rest": ["ü", None, 3, np.arange(3), Image.new("RGB", (2, 3), "red")],
    }
    parcel = pack(made)
    assert parcel.block.is_shared() and parcel.rest % ALIGNMENT == 0
    found = unpack(parcel)
    assert list(found) == list(made)
    for key in ("pixels", "evidence", "halves"):
        assert type(found[key]) is type(made[key]) and len(found[key]) == len(made[key])
        for one, other in zip(found[key], made[key]):
            assert one.dtype == other.dtype and one.shape == other.shape and one.equal(other)
            assert one.untyped_storage().data_ptr() == parcel.block.untyped_storage().data_ptr()
    assert found["rest"][:3] == ["ü", None, 3] and found["rest"][3].tolist() == [0, 1, 2]
    assert found["rest"][4].getpixel((1, 1)) == (255, 0, 0)


def test_what_arrives_can_be_written_to_and_outlives_its_parcel() -> None:
    first, second = unpack(pack([torch.zeros(5), torch.ones(5)]))
    first += 3
    assert first.tolist() == [3] * 5 and second.tolist() == [1] * 5


def test_without_tensors() -> None:
    assert unpack(pack({"a": [1, 2]})) == {"a": [1, 2]}
