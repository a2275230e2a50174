"""Regions in both image towers: their order and their absence mean nothing, and the front never hears of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from hiclip.model.image_tower import ImageTower
from hiclip.model.regions import RegionProjection, mean_of_present, present_regions
from hiclip.model.sizes import ModelSettings, resolve
from hiclip.model.two_towers import TwoTowers

FEATURES = 7
VIT = ModelSettings(
    width=64, depth=3, image_px=24, patch_px=8, context=10, embedding=16, vocabulary=100,
    front_layers=2, region_width=FEATURES,
)  # fmt: skip
WITH_LEFF = dataclasses.replace(VIT, leff=True)
RESNET = ModelSettings(
    size="resnet_tiny", image_hierarchy=False, text_width=64, text_depth=1, embedding=16, vocabulary=100,
    region_width=FEATURES,
)  # fmt: skip
TOWERS = pytest.mark.parametrize("settings", [VIT, WITH_LEFF, RESNET], ids=["vit", "leff", "resnet"])


def tower(settings: ModelSettings) -> torch.nn.Module:
    torch.manual_seed(0)
    return TwoTowers(settings).double().image_tower


def regions(pairs: int = 3, count: int = 5) -> Tensor:
    return torch.randn(pairs, count, FEATURES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@TOWERS
def test_the_order_of_regions_changes_nothing(settings: ModelSettings) -> None:
    image_tower, given = tower(settings), regions()
    before = image_tower.embed_regions(given).vector
    torch.testing.assert_close(image_tower.embed_regions(given[:, [3, 0, 4, 2, 1]]).vector, before)
    assert before.shape == (3, 16)
    assert not torch.allclose(image_tower.embed_regions(given.flip(-1)).vector, before, atol=1e-4)


@TOWERS
def test_absent_regions_change_nothing(settings: ModelSettings) -> None:
    image_tower, given = tower(settings), regions()
    padded = torch.cat((given, torch.zeros(3, 2, FEATURES, dtype=torch.float64)), dim=1)
    torch.testing.assert_close(image_tower.embed_regions(padded).vector, image_tower.embed_regions(given).vector)
    none_at_all = image_tower.embed_regions(torch.zeros_like(given))
    assert none_at_all.vector.isfinite().all()
    none_at_all.vector.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in image_tower.parameters())


@TOWERS
def test_computing_the_last_layer_where_it_is_read_changes_nothing(settings: ModelSettings) -> None:
    image_tower, given = tower(settings), regions()
    whole = image_tower.embed_regions(given, all_tokens=True)
    assert whole.tokens.shape[:2] == (3, 6)
    assert whole.affinities == []
    torch.testing.assert_close(image_tower.embed_regions(given).vector, whole.vector)
    assert image_tower.embed_regions(given).tokens is None


def reached(image_tower: torch.nn.Module) -> set[str]:
    """Parameters with a gradient, by the first words of their names."""
    names = {name for name, p in image_tower.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    return {name.removesuffix(".weight").removesuffix(".bias") for name in names}


@pytest.mark.parametrize("settings", [VIT, WITH_LEFF])
def test_the_front_gets_no_gradient_from_regions(settings: ModelSettings) -> None:
    image_tower = tower(settings)
    image_tower.embed_regions(regions()).vector.square().sum().backward()
    found = reached(image_tower)
    assert {name for name in found if not name.startswith("transformer.layers.2.")} == {
        "cls_token", "stream_norm", "final_norm", "projection", "regions",
    }  # fmt: skip
    assert {"transformer.layers.2.mlp.widen", "transformer.layers.2.attention.query"} <= found
    assert not any("hierarchy" in name for name in found)


def test_the_convolutions_get_no_gradient_from_regions() -> None:
    image_tower = tower(RESNET)
    image_tower.embed_regions(regions()).vector.square().sum().backward()
    assert reached(image_tower) == {
        "regions",
        "region_norm",
        *(f"pool.{name}" for name in ("query", "key", "value")),
    } | {"pool.output"}


def test_regions_enter_as_pictures_do_without_positions_and_hierarchy() -> None:
    """A plain tower of the rear layers alone says the same of projected regions in place of patches."""
    image_tower = tower(VIT)
    rear = tower(dataclasses.replace(VIT, image_depth=1, image_hierarchy=False, front_layers=None, region_width=None))
    assert isinstance(image_tower, ImageTower)
    assert isinstance(rear, ImageTower)
    weights = {
        name.replace("layers.2.", "layers.0."): tensor
        for name, tensor in image_tower.state_dict().items()
        if "hierarchy" not in name and not name.startswith(("regions", "transformer.layers.0", "transformer.layers.1"))
    }
    rear.load_state_dict(weights)
    assert image_tower.regions is not None
    stream = torch.cat((rear.cls_token.expand(3, 1, -1), image_tower.regions(regions())), dim=1)
    tokens, _ = rear.transformer(rear.stream_norm(stream))
    expected = rear.projection(rear.final_norm(tokens)[:, 0])
    torch.testing.assert_close(image_tower.embed_regions(regions()).vector, expected)


def test_the_projection_starts_with_the_towers_deviation_and_keeps_zeros() -> None:
    torch.manual_seed(0)
    projection = RegionProjection(200, 400)
    assert projection.weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
    assert projection.bias is None
    assert (projection(torch.zeros(1, 2, 200)) == 0).all()


def test_which_regions_are_there() -> None:
    given = torch.tensor([[[0.0, 1.0], [0.0, 0.0], [-2.0, 0.0]], [[0.0, 0.0]] * 3])
    present = present_regions(given)
    assert present.tolist() == [[True, True, False, True], [True, False, False, False]]
    mean = mean_of_present(given, present[:, 1:])
    assert mean.tolist() == [[[-1.0, 0.5]], [[0.0, 0.0]]]


def test_the_gradient_of_regions() -> None:
    given = regions(2, 3)
    given[0, 1] = 0
    for settings in (VIT, RESNET):
        image_tower = tower(settings)
        assert image_tower.regions is not None
        weight = image_tower.regions.weight
        assert torch.autograd.gradcheck(
            lambda _, module=image_tower: module.embed_regions(given).vector, (weight,), fast_mode=True, atol=1e-4
        )


def test_regions_need_a_front() -> None:
    with pytest.raises(ValueError, match="front_layers: expected 1 to 2 with region_width, came null"):
        resolve(dataclasses.replace(VIT, front_layers=None))


def test_half_precision_regions_are_taken() -> None:
    for settings in (VIT, RESNET):
        image_tower = tower(settings)
        halves = regions().half()
        torch.testing.assert_close(
            image_tower.embed_regions(halves).vector, image_tower.embed_regions(halves.double()).vector
        )
