"""PLC's compressor against the equations with loops, its corner cases, its gradients, and its files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cropl.grid import Region, TokenGrid
from cropl.models.compressor import Compressor, CompressorConfig
from cropl.models.placement import Placement, region_span
from tests.reference.plc import compress

WIDTH = 16


def made(seed: int = 0, **options: Any) -> Compressor:
    torch.manual_seed(seed)
    config = CompressorConfig(**{"width": WIDTH, "queries": 5, "outside_queries": 3, "side": 10, **options})
    compressor = Compressor(config).double()
    for parameter in compressor.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return compressor


def reference(compressor: Compressor, x: torch.Tensor, grid: TokenGrid, region: Region) -> np.ndarray:
    def queries(part: Any) -> tuple[np.ndarray, np.ndarray | None]:
        encoding = None if part.encoding is None else part.encoding.detach().numpy()
        return part.content.detach().numpy(), encoding

    config = compressor.config
    span = (0, grid.rows, 0, grid.cols) if region == Region.full() else grid.span(region)
    return compress(
        x.numpy(), (grid.rows, grid.cols), span, queries(compressor.inner), queries(compressor.outer), config.anchors,
        config.positions == "sincos", config.unit,
    )  # fmt: skip


@st.composite
def regions(draw: Any) -> Region:
    x0, x1 = sorted(draw(st.tuples(*[st.integers(0, 7)] * 2)))
    y0, y1 = sorted(draw(st.tuples(*[st.integers(0, 7)] * 2)))
    return Region(x0, y0, x1, y1)


@st.composite
def grids(draw: Any) -> TokenGrid:
    size = draw(st.tuples(*[st.integers(20, 400)] * 2))
    if draw(st.booleans()):
        return TokenGrid.padded_square(draw(st.integers(2, 10)), *size)
    return TokenGrid.stretched(draw(st.integers(1, 10)), draw(st.integers(1, 10)), *size)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(grids(), regions()), min_size=1, max_size=3), st.integers(0, 9), st.data())
def test_a_batch_of_any_grids_and_regions_is_the_equations(batch, seed, data) -> None:
    compressor = made(
        seed, anchors=data.draw(st.booleans()), positions=data.draw(st.sampled_from(["sincos", "none"])),
        unit=data.draw(st.sampled_from([1.0, 7.5])),
    )  # fmt: skip
    torch.manual_seed(seed)
    features = [torch.randn(grid.num_tokens, WIDTH, dtype=torch.float64) for grid, _ in batch]
    with torch.no_grad():
        out = compressor(features, [grid for grid, _ in batch], [region for _, region in batch])
    for tokens, x, (grid, region) in zip(out, features, batch, strict=True):
        expected = reference(compressor, x, grid, region)
        assert len(tokens) == len(expected) == compressor.count(grid)
        np.testing.assert_allclose(tokens.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(
    "region", [Region(0, 0, 0, 0), Region(7, 7, 7, 7), Region(7, 0, 7, 0), Region(3, 4, 3, 4), Region.full()]
)
def test_the_papers_sizes(region) -> None:
    compressor = made(queries=64, outside_queries=4, side=24)
    grid = TokenGrid.padded_square(24, 640, 480)
    x = torch.randn(576, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        [tokens] = compressor([x], [grid], [region])
    assert tokens.shape == (68, WIDTH)
    np.testing.assert_allclose(tokens.numpy(), reference(compressor, x, grid, region), atol=1e-9)


def test_learned_encodings_of_tokens_start_as_the_fixed_ones() -> None:
    grid, region = TokenGrid.stretched(9, 7, 90, 70), Region(1, 2, 5, 5)
    x = torch.randn(63, WIDTH, dtype=torch.float64)
    torch.manual_seed(3)
    fixed = Compressor(CompressorConfig(WIDTH, 5, 3)).double()
    torch.manual_seed(3)
    learned = Compressor(CompressorConfig(WIDTH, 5, 3, positions="learned")).double()
    assert learned.axes.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(learned([x], [grid], [region]), fixed([x], [grid], [region]), atol=1e-5, rtol=0)


@settings(deadline=None)
@given(grids(), regions())
def test_anchor_windows_lie_inside_the_grid_and_meet_the_region(grid, region) -> None:
    place = Placement.of([grid], [region], "cpu")
    index = place.anchor_BR[0][place.real_BR[0]]
    assert len(set(index.tolist())) == len(index) == place.anchors[0]
    assert int(index.min()) >= 0 and int(index.max()) < grid.num_tokens
    r0, r1, c0, c1 = region_span(region, grid)
    rows, cols = index // grid.cols, index % grid.cols
    assert ((rows >= r0) & (rows < r1) & (cols >= c0) & (cols < c1)).any()
    assert not (place.inside_BV & place.outside_BV).any() or bool(place.inside_BV.all())


def test_gradients_reach_queries_and_tokens() -> None:
    compressor = made()
    grid = TokenGrid.padded_square(9, 64, 64)
    x = torch.randn(81, WIDTH, dtype=torch.float64, requires_grad=True)
    [tokens] = compressor([x], [grid], [Region(1, 1, 4, 4)])
    tokens.pow(2).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in compressor.parameters())
    assert (x.grad.abs().sum(1) > 0).all()  # the rest of the image too, through the outer queries


def test_without_outer_queries_only_the_region_is_left() -> None:
    compressor = made(outside_queries=0)
    grid = TokenGrid.padded_square(9, 64, 64)
    x = torch.randn(81, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        [tokens] = compressor([x], [grid], [Region(1, 1, 4, 4)])
    assert len(tokens) == 64 == compressor.count(grid)


def test_it_is_read_back_as_it_was_written(tmp_path) -> None:
    compressor = made(unit=3.0, positions="learned").float()
    compressor.save_pretrained(tmp_path)
    back = Compressor.from_pretrained(tmp_path)
    assert back.config == compressor.config and not back.training
    for name, value in compressor.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


def test_bad_configs_and_files_are_named(tmp_path) -> None:
    for options, message in (
        ({"queries": 0}, "queries=0"), ({"width": 18}, "multiple of 4"), ({"unit": 0.0}, "unit=0"),
        ({"positions": "rope"}, "positions='rope'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            CompressorConfig(**{"width": WIDTH, **options})
    with pytest.raises(ValueError, match=r"compressor.json.*no exported PLC"):
        Compressor.from_pretrained(tmp_path)
    made().float().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "compressor.json").read_text())
    (tmp_path / "compressor.json").write_text(json.dumps({**config, "queries": 6}))
    with pytest.raises(ValueError, match="cannot be read"):
        Compressor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="5 x 5 grid"):
        made()([torch.zeros(24, WIDTH)], [TokenGrid.padded_square(5, 9, 9)], [Region.full()])


@pytest.mark.parametrize("file", ["compressor.json", "compressor.safetensors"])
def test_a_damaged_file_is_named(tmp_path, file) -> None:
    made().float().save_pretrained(tmp_path)
    path = tmp_path / file
    whole = path.read_bytes()
    for damaged in (b"", whole[:4], whole[:100], whole[:-10], b"\xff\xfe{}", b"[]", b'{"width": 16, "queries": 0}'):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{file}: the compressor cannot be read: ."):
            Compressor.from_pretrained(tmp_path)
    path.write_bytes(whole)
    assert Compressor.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=f"no {file}: it is no exported PLC"):
        Compressor.from_pretrained(tmp_path)
