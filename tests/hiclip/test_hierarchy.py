"""Hierarchy masks against reference values, the paper's own figure, and the identities that they must keep."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hiclip.model.affinity import grid_affinity, sentence_affinity, strengthen
from hiclip.model.hierarchy import (
    GridLinks,
    HierarchyLinks,
    SentenceLinks,
    grid_mask,
    hierarchy_attention,
    sentence_mask,
    with_cls,
    with_self_link,
)
from hiclip.model.sizes import ClsLink, PathMerge, SelfLink

GOLDEN = Path(__file__).parent.parent / "golden" / "hierarchy.npz"
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}

FIGURE_14 = [
    ([0.40, 0.66, 0.24, 0.71, 0.34], ".40 .264 .063 .045 .015 | .66 .158 .112 .038 | .24 .170 .058 | .71 .241 | .34"),
    ([0.43, 0.99, 0.25, 0.99, 0.54], ".43 .426 .106 .105 .057 | .99 .248 .245 .132 | .25 .248 .134 | .99 .535 | .54"),
    ([0.79, 1.00, 0.32, 0.99, 0.90], ".79 .79 .253 .250 .225 | 1.0 .320 .317 .285 | .32 .317 .285 | .99 .891 | .90"),
]
"""The paper's affinities of "a blue cat sitting on bench" and the upper triangle of C that they give, by layer."""


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    """Reference values in float64 from an independent implementation in loops."""
    return {name: torch.from_numpy(values) for name, values in np.load(GOLDEN).items()}


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float64) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=TOLERANCE[dtype], atol=1e-7)


def links(*shape: int, seed: int = 0) -> Tensor:
    return 0.05 + 0.9 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def walked(right: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Products along both one-turn paths between all patches, walked link by link: columns first, rows first."""
    rows, columns = right.shape[0], down.shape[1]
    places = list(itertools.product(range(rows), range(columns)))
    paths = torch.ones(2, len(places), len(places), dtype=torch.float64)
    for (start, (i1, j1)), (end, (i2, j2)) in itertools.product(enumerate(places), repeat=2):
        for path, (row, column) in enumerate(((i2, j1), (i1, j2))):
            along_column, along_row = slice(min(i1, i2), max(i1, i2)), slice(min(j1, j2), max(j1, j2))
            paths[path, start, end] = down[along_column, column].prod() * right[row, along_row].prod()
    return paths[0], paths[1]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layer", [1, 2])
def test_sentence_mask_is_the_reference(golden: dict[str, Tensor], dtype: torch.dtype, layer: int) -> None:
    mask = sentence_mask(golden[f"s_a{layer}"].to(dtype))
    assert mask.dtype == dtype
    close(mask, golden[f"s_C{layer}"], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("merge", ["max", "mean"])
@pytest.mark.parametrize("layer", [1, 2])
def test_grid_mask_is_the_reference(
    golden: dict[str, Tensor], dtype: torch.dtype, merge: PathMerge, layer: int
) -> None:
    right, down = golden[f"g_right{layer}"].to(dtype), golden[f"g_down{layer}"].to(dtype)
    close(grid_mask(right, down, merge=merge), golden[f"g_C{layer}_{merge}"], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_attention_is_the_reference(golden: dict[str, Tensor], dtype: torch.dtype) -> None:
    query, key, value, mask = (golden[name].to(dtype) for name in ("t_q", "t_k", "t_v", "s_C2"))
    close(hierarchy_attention(query, key, value, mask, golden["t_causal"]), golden["t_out_causal"], dtype)
    close(hierarchy_attention(query, key, value, mask), golden["t_out_full"], dtype)
    image = (golden[name].to(dtype) for name in ("i_q", "i_k", "i_v", "i_C"))
    close(hierarchy_attention(*image), golden["i_out"], dtype)


def test_the_bf16_path_stays_near_the_reference(golden: dict[str, Tensor]) -> None:
    """From projections in bf16 through affinities and C to attention in bf16, for words and for patches."""
    half = {name: value.bfloat16() for name, value in golden.items() if value.dtype == torch.float64}
    scale = golden["s_scale"].item()
    first = sentence_affinity(half["s_q1"], half["s_k1"], golden["s_valid"], scale=scale)
    mask = sentence_mask(sentence_affinity(half["s_q2"], half["s_k2"], golden["s_valid"], first, scale=scale))
    assert mask.dtype == torch.float32
    attended = hierarchy_attention(half["t_q"], half["t_k"], half["t_v"], mask, golden["t_causal"])
    assert attended.dtype == torch.bfloat16
    torch.testing.assert_close(mask.double(), golden["s_C2"], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(attended.double(), golden["t_out_causal"], rtol=2e-2, atol=2e-2)
    patches = grid_mask(*grid_affinity(half["g_q1"], half["g_k1"], scale=scale))
    torch.testing.assert_close(patches.double(), golden["g_C1_max"], rtol=2e-2, atol=2e-2)
    image = hierarchy_attention(half["i_q"], half["i_k"], half["i_v"], golden["i_C"].float())
    torch.testing.assert_close(image.double(), golden["i_out"], rtol=2e-2, atol=2e-2)


def test_bf16_affinities_are_multiplied_in_float32() -> None:
    """Prefix sums in bf16 would be off by several percent along a sentence."""
    strong = (1 - 0.05 * links(1, 76)).bfloat16()
    torch.testing.assert_close(sentence_mask(strong).double(), sentence_mask(strong.double()), rtol=1e-5, atol=0)
    right, down = strong[:, :6].reshape(1, 2, 3), strong[:, 6:10].reshape(1, 1, 4)
    torch.testing.assert_close(
        grid_mask(right, down).double(), grid_mask(right.double(), down.double()), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(("affinity", "triangle"), FIGURE_14)
def test_figure_14_of_the_paper(affinity: list[float], triangle: str) -> None:
    mask = sentence_mask(torch.tensor([affinity], dtype=torch.float64))[0]
    for row, printed in enumerate(triangle.split("|")):
        assert mask[row, row + 1 :].tolist() == pytest.approx([float(number) for number in printed.split()], abs=6e-4)


def test_small_exact_sentence() -> None:
    first = sentence_mask(torch.tensor([[0.499740, 0.683379, 0.434477, 0.707107]]))[0, 0]
    second = sentence_mask(torch.tensor([[0.853477, 0.841689, 0.717239, 0.914214]]))[0, 0]
    assert first.tolist() == pytest.approx([1, 0.499740, 0.341512, 0.148379, 0.104920], abs=1e-6)
    assert second.tolist() == pytest.approx([1, 0.853477, 0.718363, 0.515237, 0.471037], abs=1e-6)


def test_small_exact_grid() -> None:
    right = torch.tensor([[[0.5, 0.8], [0.9, 0.4]]], dtype=torch.float64)
    down = torch.tensor([[[0.7, 0.6, 0.3]]], dtype=torch.float64)
    expected = [
        [1, 0.5, 0.4, 0.7, 0.63, 0.252],
        [0.5, 1, 0.8, 0.54, 0.6, 0.24],
        [0.4, 0.8, 1, 0.28, 0.48, 0.3],
        [0.7, 0.54, 0.28, 1, 0.9, 0.36],
        [0.63, 0.6, 0.48, 0.9, 1, 0.4],
        [0.252, 0.24, 0.3, 0.36, 0.4, 1],
    ]
    close(grid_mask(right, down)[0], torch.tensor(expected))


def test_full_affinities_make_plain_attention_bit_for_bit() -> None:
    query, key, value = torch.randn(3, 2, 4, 21, 8).unbind()
    whole = with_cls(grid_mask(torch.ones(2, 4, 4), torch.ones(2, 3, 5)))
    chain = sentence_mask(torch.ones(2, 20))
    plain = hierarchy_attention(query, key, value, None)
    assert torch.equal(whole, torch.ones(2, 21, 21))
    assert torch.equal(chain, torch.ones(2, 21, 21))
    assert torch.equal(hierarchy_attention(query, key, value, whole), plain)
    reference = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(plain, reference)


def test_sentence_mask_is_symmetric_and_holds_its_links() -> None:
    affinity = links(3, 9)
    mask = sentence_mask(affinity)
    assert torch.equal(mask, mask.transpose(1, 2))
    assert ((mask > 0) & (mask <= 1)).all()
    torch.testing.assert_close(mask.diagonal(1, 1, 2), affinity)
    assert torch.equal(mask.diagonal(0, 1, 2), torch.ones(3, 10, dtype=torch.float64))


def test_grid_mask_is_symmetric_and_holds_its_links() -> None:
    right, down = links(2, 3, 4), links(2, 2, 5, seed=1)
    mask = grid_mask(right, down)
    assert torch.equal(mask, mask.transpose(1, 2))
    assert ((mask > 0) & (mask <= 1)).all()
    square = mask.view(2, 3, 5, 3, 5)
    for row, column in itertools.product(range(3), range(5)):
        if column < 4:
            torch.testing.assert_close(square[:, row, column, row, column + 1], right[:, row, column])
        if row < 2:
            torch.testing.assert_close(square[:, row, column, row + 1, column], down[:, row, column])


def test_masks_never_weaken_from_layer_to_layer() -> None:
    below, above = links(2, 9), links(2, 9, seed=1)
    assert (sentence_mask(strengthen(above, below)) >= sentence_mask(below)).all()
    right, down = (links(2, 3, 4), links(2, 3, 4, seed=1)), (links(2, 2, 5), links(2, 2, 5, seed=1))
    higher = grid_mask(strengthen(right[1], right[0]), strengthen(down[1], down[0]))
    assert (higher >= grid_mask(right[0], down[0])).all()


def test_a_row_or_a_column_of_patches_is_a_sentence() -> None:
    affinity = links(2, 6)
    none_down, none_right = torch.zeros(2, 0, 7, dtype=torch.float64), torch.zeros(2, 7, 0, dtype=torch.float64)
    for merge in ("max", "mean"):
        torch.testing.assert_close(grid_mask(affinity[:, None], none_down, merge=merge), sentence_mask(affinity))
        torch.testing.assert_close(grid_mask(none_right, affinity[..., None], merge=merge), sentence_mask(affinity))


def test_a_turned_or_mirrored_grid_has_a_permuted_mask() -> None:
    right, down = links(1, 3, 4), links(1, 2, 5, seed=1)
    square = grid_mask(right, down).view(3, 5, 3, 5)
    turned = grid_mask(down.transpose(1, 2), right.transpose(1, 2)).view(5, 3, 5, 3)
    torch.testing.assert_close(turned, square.permute(1, 0, 3, 2))
    mirrored = grid_mask(right.flip(2), down.flip(2)).view(3, 5, 3, 5)
    torch.testing.assert_close(mirrored, square.flip(1, 3))


def test_both_paths_are_those_walked_link_by_link() -> None:
    right, down = links(1, 3, 4), links(1, 2, 5, seed=1)
    columns_first, rows_first = walked(right[0], down[0])
    larger, mean = grid_mask(right, down)[0], grid_mask(right, down, merge="mean")[0]
    close(larger, torch.maximum(columns_first, rows_first))
    close(mean, (columns_first + rows_first) / 2)
    assert (larger >= mean).all()
    assert (mean >= torch.minimum(columns_first, rows_first) - 1e-12).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (4, 1), (2, 6), (5, 3)])
def test_fresh_grids_are_walked_link_by_link(rows: int, columns: int) -> None:
    right, down = links(1, rows, columns - 1, seed=7), links(1, rows - 1, columns, seed=8)
    columns_first, rows_first = walked(right[0], down[0])
    for dtype in TOLERANCE:
        sides = right.to(dtype), down.to(dtype)
        close(grid_mask(*sides)[0], torch.maximum(columns_first, rows_first), dtype)
        close(grid_mask(*sides, merge="mean")[0], (columns_first + rows_first) / 2, dtype)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_fresh_sentences_are_walked_link_by_link(length: int) -> None:
    affinity = links(2, 8, seed=9)
    affinity[:, length - 1 :] = 0
    expected = torch.zeros(2, 9, 9, dtype=torch.float64)
    for row, start, end in itertools.product(range(2), range(9), range(9)):
        expected[row, start, end] = affinity[row, min(start, end) : max(start, end)].prod()
    for dtype in TOLERANCE:
        close(sentence_mask(affinity.to(dtype)), expected, dtype)


@pytest.mark.parametrize("self_link", ["one", "zero"])
@pytest.mark.parametrize("special_tokens_in_chain", [True, False])
def test_rows_of_a_caption_are_those_of_its_mask(self_link: SelfLink, special_tokens_in_chain: bool) -> None:
    place, end = torch.arange(7), torch.tensor([[6], [3], [0]])
    chain = place <= end if special_tokens_in_chain else (place > 0) & (place < end)
    affinity = links(3, 6).masked_fill(~(chain[:, 1:] & chain[:, :-1]), 0.0).requires_grad_()
    of_layer = SentenceLinks(affinity, chain, special_tokens_in_chain, self_link)
    rows_are_those_of_the_mask(of_layer, torch.cat((end, end // 2), dim=1), [affinity])


@pytest.mark.parametrize("merge", ["max", "mean"])
@pytest.mark.parametrize("cls_link", ["one", "column_only"])
@pytest.mark.parametrize("self_link", ["one", "zero"])
def test_rows_of_a_picture_are_those_of_its_mask(merge: PathMerge, cls_link: ClsLink, self_link: SelfLink) -> None:
    sides = [links(2, 3, 3).requires_grad_(), links(2, 2, 4, seed=1).requires_grad_()]
    places = torch.tensor([[0, 5, 12], [1, 0, 7]])
    rows_are_those_of_the_mask(GridLinks(*sides, merge, cls_link, self_link), places, sides)


def rows_are_those_of_the_mask(of_layer: HierarchyLinks, places: Tensor, affinities: list[Tensor]) -> None:
    dense = of_layer.dense()
    expected = torch.stack([mask[of] for mask, of in zip(dense, places, strict=True)])
    rows = of_layer.rows(places)
    torch.testing.assert_close(rows, expected)
    weights = torch.randn(rows.shape, dtype=rows.dtype, generator=torch.Generator().manual_seed(3))
    gradients = [torch.autograd.grad((of * weights).sum(), affinities, retain_graph=True) for of in (rows, expected)]
    torch.testing.assert_close(*gradients)
    assert all(side.abs().max() > 1e-3 for side in gradients[0])


def test_the_tables_of_a_caption_keep_strangers_apart() -> None:
    chain = torch.tensor([[False, True, True, True, False, False]])
    affinity = torch.tensor([[0.0, 0.5, 0.25, 0.0, 0.0]])
    height, segment = SentenceLinks(affinity, chain).tables()
    torch.testing.assert_close(height.exp(), torch.tensor([[1, 1, 0.5, 0.125, 0.125, 0.125]]))
    assert segment.tolist() == [[0, 1, 1, 1, 2, 3]]
    assert SentenceLinks(affinity, chain, special_tokens_in_chain=False).tables()[1].tolist() == [[-1, 1, 1, 1, -1, -1]]


def test_rows_of_weighted_attention_sum_to_at_most_one() -> None:
    query, key = torch.randn(2, 2, 3, 15, 8, dtype=torch.float64).unbind()
    everything = torch.ones(2, 3, 15, 1, dtype=torch.float64)
    sums = hierarchy_attention(query, key, everything, grid_mask(links(2, 3, 4), links(2, 2, 5)))
    assert (sums <= 1 + 1e-12).all()
    assert (sums < 0.9).any()


def test_a_link_of_zero_separates_exactly() -> None:
    affinity = torch.tensor([[0.5, 0.9, 0.0, 0.7, 0.0, 0.0]], requires_grad=True)
    mask = sentence_mask(affinity)
    assert torch.equal(mask[0, :3, 3:], torch.zeros(3, 4))
    assert torch.equal(mask[0].diagonal(), torch.ones(7))
    assert mask[0, 3, 4].item() == pytest.approx(0.7)
    mask.sum().backward()
    assert affinity.grad is not None
    assert affinity.grad[0, [2, 4, 5]].tolist() == [0, 0, 0]
    assert affinity.grad.isfinite().all()


def test_a_grid_link_of_zero_stays_finite() -> None:
    right, down = torch.zeros(1, 2, 2, requires_grad=True), torch.full((1, 1, 3), 0.5, requires_grad=True)
    mask = grid_mask(right, down)
    mask.sum().backward()
    assert mask[0, 0, 1].item() == pytest.approx(0.0, abs=1e-30)
    for side in (right, down):
        assert side.grad is not None
        assert side.grad.isfinite().all()


def test_cls_links() -> None:
    patches = grid_mask(links(2, 2, 1), links(2, 1, 2, seed=1))
    both = with_cls(patches)
    assert torch.equal(both[:, 1:, 1:], patches)
    assert torch.equal(both[:, 0], torch.ones(2, 5, dtype=torch.float64))
    assert torch.equal(both[:, :, 0], torch.ones(2, 5, dtype=torch.float64))
    reading = with_cls(patches, "column_only")
    assert torch.equal(reading[:, 1:], both[:, 1:])
    torch.testing.assert_close(reading[:, 0, 1:], patches.mean(dim=1))
    assert torch.equal(reading[:, 0, 0], torch.ones(2, dtype=torch.float64))


def test_self_links() -> None:
    mask = sentence_mask(links(2, 4))
    assert torch.equal(with_self_link(mask, "one"), mask)
    emptied = with_self_link(mask, "zero")
    assert torch.equal(emptied, mask * (1 - torch.eye(5, dtype=torch.float64)))


def test_gradients_of_masks_and_attention_are_exact() -> None:
    chain = links(2, 4).requires_grad_()
    right, down = links(2, 3, 2).requires_grad_(), links(2, 2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(sentence_mask, (chain,))
    for merge in ("max", "mean"):
        assert torch.autograd.gradcheck(lambda *sides, by=merge: grid_mask(*sides, merge=by), (right, down))
    inputs = [side.requires_grad_() for side in torch.randn(3, 2, 2, 5, 3, dtype=torch.float64).unbind()]
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    mask = sentence_mask(chain).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: hierarchy_attention(*given, causal), (*inputs, mask))


def test_gradients_through_padding_are_exact() -> None:
    valid = torch.tensor([[True, True, True, False, False], [True, False, False, False, False]])
    query, key = (torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def mask(query: Tensor, key: Tensor) -> Tensor:
        first = sentence_affinity(query, key, valid, scale=2.0)
        return sentence_mask(sentence_affinity(key, query, valid, first, scale=2.0))

    assert torch.autograd.gradcheck(mask, (query, key))
