"""Affinities against reference values and the identities that they must keep."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hiclip.model.affinity import NeighbourProjection, grid_affinity, sentence_affinity, strengthen

GOLDEN = Path(__file__).parent.parent / "golden" / "hierarchy.npz"
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    """Reference values in float64 from an independent implementation in loops."""
    return {name: torch.from_numpy(values) for name, values in np.load(GOLDEN).items()}


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float64) -> None:
    tolerance = TOLERANCE[dtype]
    atol = tolerance if dtype == torch.bfloat16 else 1e-7
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=atol)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def walked_sentence(query: Tensor, key: Tensor, valid: Tensor, previous: Tensor | None, scale: float) -> Tensor:
    """The specification word by word, in loops: shares among the neighbours there are, their geometric mean, eq. 5."""
    batch, places, _ = query.shape
    affinity = torch.zeros(batch, places - 1, dtype=torch.float64)
    for row in range(batch):

        def share(word: int, of: int, row: int = row) -> float:
            near = [other for other in (word - 1, word + 1) if 0 <= other < places and valid[row, other]]
            scores = {other: math.exp((query[row, word] @ key[row, other]).item() / scale) for other in near}
            return scores[of] / sum(scores.values())

        for word in range(places - 1):
            link = 0.0
            if valid[row, word] and valid[row, word + 1]:
                link = math.sqrt(share(word, word + 1) * share(word + 1, word) + 1e-9)
            below = 0.0 if previous is None else previous[row, word].item()
            affinity[row, word] = below + (1 - below) * link
    return affinity


def walked_grid(
    query: Tensor, key: Tensor, previous: tuple[Tensor, Tensor] | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The same over patches: the neighbours of one are up to four."""
    batch, rows, columns, _ = query.shape
    found = torch.zeros(batch, rows, columns - 1), torch.zeros(batch, rows - 1, columns)
    right, down = (side.double() for side in found)

    def share(image: int, patch: tuple[int, int], of: tuple[int, int]) -> float:
        row, column = patch
        near = [(row, column + 1), (row, column - 1), (row + 1, column), (row - 1, column)]
        near = [(r, c) for r, c in near if 0 <= r < rows and 0 <= c < columns]
        scores = {one: math.exp((query[image, row, column] @ key[image, *one]).item() / scale) for one in near}
        return scores[of] / sum(scores.values())

    for image, row, column in itertools.product(range(batch), range(rows), range(columns)):
        here = (row, column)
        for side, there in enumerate(((row, column + 1), (row + 1, column))):
            if there[0] < rows and there[1] < columns:
                link = math.sqrt(share(image, here, there) * share(image, there, here) + 1e-9)
                below = 0.0 if previous is None else previous[side][image, row, column].item()
                (right, down)[side][image, row, column] = below + (1 - below) * link
    return right, down


def lengths(*counts: int, places: int) -> Tensor:
    return torch.arange(places) < torch.tensor(counts)[:, None]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_sentence_is_the_reference(golden: dict[str, Tensor], dtype: torch.dtype) -> None:
    q1, k1, q2, k2 = (golden[f"s_{name}"].to(dtype) for name in ("q1", "k1", "q2", "k2"))
    valid, scale = golden["s_valid"], golden["s_scale"].item()
    first = sentence_affinity(q1, k1, valid, scale=scale)
    second = sentence_affinity(q2, k2, valid, first, scale=scale)
    assert first.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(first, golden["s_a1"], dtype)
    close(second, golden["s_a2"], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_grid_is_the_reference(golden: dict[str, Tensor], dtype: torch.dtype) -> None:
    q1, k1, q2, k2 = (golden[f"g_{name}"].to(dtype) for name in ("q1", "k1", "q2", "k2"))
    scale = golden["g_scale"].item()
    first = grid_affinity(q1, k1, scale=scale)
    second = grid_affinity(q2, k2, first, scale=scale)
    for layer, (right, down) in enumerate((first, second), start=1):
        assert right.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        close(right, golden[f"g_right{layer}"], dtype)
        close(down, golden[f"g_down{layer}"], dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("counts", "places"), [((7, 4, 1), 7), ((2, 1), 2), ((5, 3, 2), 9)])
def test_fresh_sentences_are_those_walked_word_by_word(
    counts: tuple[int, ...], places: int, dtype: torch.dtype
) -> None:
    valid = lengths(*counts, places=places)
    layers = [drawn(2, len(counts), places, 6, seed=seed) for seed in (10, 11)]
    found, expected = None, None
    for query, key in layers:
        found = sentence_affinity(query.to(dtype), key.to(dtype), valid, found, scale=1.7)
        expected = walked_sentence(query, key, valid, expected, 1.7)
        close(found, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1, 6), (4, 1), (2, 2), (7, 7)])
def test_fresh_grids_are_those_walked_patch_by_patch(rows: int, columns: int, dtype: torch.dtype) -> None:
    layers = [drawn(2, 2, rows, columns, 6, seed=seed) for seed in (12, 13)]
    found, expected = None, None
    for query, key in layers:
        found = grid_affinity(query.to(dtype), key.to(dtype), found, scale=1.7)
        expected = walked_grid(query, key, expected, 1.7)
        for one, other in zip(found, expected, strict=True):
            close(one, other, dtype)


def test_small_exact_case() -> None:
    """Specification 1.4: scores between five tokens, then a second layer whose scores are all 0."""
    onward, back = torch.tensor([0.3, 0.9, -0.4, 0.5]), torch.tensor([-0.2, 0.1, 0.5, -1.0])
    # Queries and keys whose products are exactly these: a token's query holds its scores, its key says where it stands.
    query, key = torch.zeros(1, 5, 5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)[None]
    query[0, range(4), range(1, 5)] = onward.double()
    query[0, range(1, 5), range(4)] = back.double()
    valid = torch.ones(1, 5, dtype=torch.bool)
    first = sentence_affinity(query, key, valid, scale=1.0)
    second = sentence_affinity(torch.zeros_like(query), key, valid, first, scale=1.0)
    torch.testing.assert_close(
        first[0], torch.tensor([0.499740, 0.683379, 0.434477, 0.707107]).double(), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        second[0], torch.tensor([0.853477, 0.841689, 0.717239, 0.914214]).double(), atol=1e-6, rtol=0
    )


def test_a_row_of_patches_is_a_sentence() -> None:
    query, key, earlier = drawn(2, 7, 5), drawn(2, 7, 5, seed=1), torch.rand(2, 6, dtype=torch.float64)
    words = sentence_affinity(query, key, torch.ones(2, 7, dtype=torch.bool), earlier, scale=2.0)
    right, down = grid_affinity(
        query[:, None], key[:, None], (earlier[:, None], torch.zeros(2, 0, 7, dtype=torch.float64)), scale=2.0
    )
    torch.testing.assert_close(right[:, 0], words)
    assert down.shape == (2, 0, 7)


def test_a_turned_grid_has_turned_links() -> None:
    query, key = drawn(2, 3, 5, 4), drawn(2, 3, 5, 4, seed=1)
    right, down = grid_affinity(query, key, scale=2.0)
    turned_right, turned_down = grid_affinity(query.transpose(1, 2), key.transpose(1, 2), scale=2.0)
    torch.testing.assert_close(turned_right, down.transpose(1, 2))
    torch.testing.assert_close(turned_down, right.transpose(1, 2))
    mirrored_right, mirrored_down = grid_affinity(query.flip(2), key.flip(2), scale=2.0)
    torch.testing.assert_close(mirrored_right, right.flip(2))
    torch.testing.assert_close(mirrored_down, down.flip(2))


def test_shares_depend_on_the_number_of_neighbours() -> None:
    """With equal scores a patch divides itself evenly: by 2 in a corner, 3 on an edge, 4 inside."""
    nothing = torch.zeros(1, 4, 4, 3, dtype=torch.float64)
    right, down = grid_affinity(nothing, nothing, scale=256.0)
    corner_edge, edge_edge, edge_inside, inside = ((a * b) ** -0.5 for a, b in ((2, 3), (3, 3), (3, 4), (4, 4)))
    border = [corner_edge, edge_edge, corner_edge]
    inner = [edge_inside, inside, edge_inside]
    torch.testing.assert_close(right[0], torch.tensor([border, inner, inner, border]).double())
    torch.testing.assert_close(down[0].T, torch.tensor([border, inner, inner, border]).double())


def test_padding_has_no_links_and_changes_none() -> None:
    query, key = drawn(3, 6, 4), drawn(3, 6, 4, seed=1)
    valid = lengths(6, 3, 1, places=6)
    padded = sentence_affinity(query, key, valid, scale=2.0)
    alone = sentence_affinity(query[:, :3], key[:, :3], valid[:, :3], scale=2.0)
    assert torch.equal(padded[1, :2], alone[1])
    assert torch.equal(padded[1, 2:], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(padded[2], torch.zeros(5, dtype=torch.float64))


def test_a_hole_separates_what_is_left_and_right_of_it() -> None:
    query, key = drawn(1, 7, 4), drawn(1, 7, 4, seed=1)
    valid = torch.tensor([[True, True, True, False, True, True, True]])
    affinity = sentence_affinity(query, key, valid, scale=2.0)
    left = sentence_affinity(query[:, :3], key[:, :3], valid[:, :3], scale=2.0)
    right = sentence_affinity(query[:, 4:], key[:, 4:], valid[:, 4:], scale=2.0)
    torch.testing.assert_close(affinity, torch.cat((left, torch.zeros(1, 2, dtype=torch.float64), right), dim=1))


def test_two_tokens_have_no_choice_and_one_has_no_link() -> None:
    query, key = drawn(1, 2, 4), drawn(1, 2, 4, seed=1)
    valid = torch.ones(1, 2, dtype=torch.bool)
    assert sentence_affinity(query, key, valid, scale=2.0).item() == pytest.approx(1.0, abs=1e-8)
    assert sentence_affinity(query[:, :1], key[:, :1], valid[:, :1], scale=2.0).shape == (1, 0)


def test_links_never_weaken() -> None:
    below, link = torch.rand(50, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    above = strengthen(link, below)
    assert (above >= below).all()
    assert (above <= 1).all()
    torch.testing.assert_close(1 - above, (1 - below) * (1 - link))
    assert strengthen(link, None) is link


def test_a_constant_in_all_keys_changes_nothing() -> None:
    query, key, shift = drawn(2, 4, 5, 6), drawn(2, 4, 5, 6, seed=1), drawn(6, seed=2)
    for moved, still in zip(
        grid_affinity(query, key + shift, scale=2.0), grid_affinity(query, key, scale=2.0), strict=True
    ):
        torch.testing.assert_close(moved, still)


def test_the_key_bias_has_no_gradient_and_the_query_bias_has() -> None:
    projection = NeighbourProjection(6, 6).double()
    affinity = sentence_affinity(*projection(drawn(2, 5, 6)), torch.ones(2, 5, dtype=torch.bool), scale=0.5)
    (affinity * drawn(2, 4, seed=3)).sum().backward()
    key, query = projection.key.bias.grad, projection.query.bias.grad
    assert key is not None
    assert query is not None
    assert key.abs().max() < 1e-15
    assert query.abs().max() > 1e-3


def test_gradients_of_a_sentence_with_padding_are_exact() -> None:
    valid = lengths(5, 3, 1, places=5)
    inputs = [drawn(3, 5, 4, seed=seed).requires_grad_() for seed in (0, 1)]
    below = (0.2 + 0.5 * torch.rand(3, 4, dtype=torch.float64)).requires_grad_()

    def affinity(query: Tensor, key: Tensor, previous: Tensor) -> Tensor:
        return sentence_affinity(query, key, valid, previous, scale=2.0)

    assert torch.autograd.gradcheck(affinity, (*inputs, below))


def test_gradients_of_a_grid_are_exact() -> None:
    inputs = [drawn(2, 3, 4, 3, seed=seed).requires_grad_() for seed in (0, 1)]
    below = [(0.2 + 0.5 * torch.rand(2, *shape, dtype=torch.float64)).requires_grad_() for shape in ((3, 3), (2, 4))]

    def affinity(query: Tensor, key: Tensor, right: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        return grid_affinity(query, key, (right, down), scale=2.0)

    assert torch.autograd.gradcheck(affinity, (*inputs, *below))


def test_bf16_projections_get_finite_bf16_gradients() -> None:
    inputs = [drawn(2, 4, 3, seed=seed).bfloat16().requires_grad_() for seed in (0, 1)]
    sentence_affinity(*inputs, lengths(4, 1, places=4), scale=2.0).sum().backward()
    for side in inputs:
        assert side.grad is not None
        assert side.grad.dtype == torch.bfloat16
        assert side.grad.isfinite().all()
