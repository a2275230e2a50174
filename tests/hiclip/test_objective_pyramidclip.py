"""PyramidCLIP's objective, and the combined one: pairs and weights, what gets a gradient, which settings make CLIP."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small_run import REGION_WIDTH, random_batch, small_job
from torch import Tensor
from two_ranks import run_on_ranks

from hiclip.batch import MASK_TOKEN, Batch, Views
from hiclip.distributed import mean_over_ranks, rank, world
from hiclip.losses.contrastive import contrastive_loss
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.objectives.clip import ClipSettings
from hiclip.objectives.objective import Objective
from hiclip.objectives.pyramid_declip import PyramidDeclipSettings
from hiclip.objectives.pyramidclip import PyramidclipSettings, pair_losses, pair_weights
from pipeline.jobfile import JobError

MODEL = ModelSettings(
    width=64, depth=2, image_px=16, patch_px=8, context=8, embedding=16, vocabulary=MASK_TOKEN + 1,
    image_hierarchy=False, text_hierarchy=False, text_pooling="max", front_layers=1, region_width=REGION_WIDTH,
    frozen_patch_embedding=True,
)  # fmt: skip
PAIRS = 8
SETTINGS = PyramidclipSettings()
COMBINED = PyramidDeclipSettings(queue=20)


def fresh_towers() -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers(MODEL).double()


def objective_of(settings: PyramidclipSettings | PyramidDeclipSettings) -> Objective:
    torch.manual_seed(1)
    return settings.build(MODEL).double()


def batch_of(views: Views) -> Batch:
    batch = random_batch(views, PAIRS, torch.Generator().manual_seed(1))
    return replace(
        batch,
        images={view: images.double() for view, images in batch.images.items()},
        regions={view: vectors.double() for view, vectors in batch.regions.items()},
    )


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_the_six_pairs_weigh_a_sixth_each() -> None:
    pairs = pair_weights(1 / 3, 1 / 3, regions=True)
    assert set(pairs) == {
        ("global_crop", "summary"), ("local_crop", "caption"), ("global_crop", "tags"),
        ("regions", "summary"), ("local_crop", "tags"), ("regions", "caption"),
    }  # fmt: skip
    assert list(pairs.values()) == pytest.approx([1 / 6] * 6)
    assert SETTINGS.views == Views(("global_crop", "local_crop"), ("summary", "caption", "tags"), ("regions",))


def test_without_regions_their_share_goes_to_the_others_in_proportion() -> None:
    assert list(pair_weights(1 / 3, 1 / 3, regions=False).values()) == pytest.approx([1 / 4] * 4)
    uneven = pair_weights(0.4, 0.2, regions=False)
    assert sum(uneven.values()) == pytest.approx(1)
    assert uneven["global_crop", "tags"] / uneven["local_crop", "tags"] == pytest.approx(2)
    assert replace(SETTINGS, regions=False).views.regions == ()


def test_one_pair_of_equal_views_without_softening_is_clip() -> None:
    settings = PyramidclipSettings(smoothing=0, cross_global=0, cross_local=0)
    assert settings.views == Views(("global_crop", "local_crop"), ("summary", "caption"))
    towers, plain = fresh_towers(), batch_of(Views(("crop",), ("caption",)))
    picture, text = plain.images["crop"], plain.tokens["caption"]
    same = replace(
        plain, images=dict.fromkeys(settings.views.images, picture), tokens=dict.fromkeys(settings.views.texts, text)
    )
    expected = ClipSettings().build(MODEL)(towers, plain)["contrastive"]
    torch.testing.assert_close(total(objective_of(settings)(towers, same)), expected)


def test_each_pair_is_a_softened_contrastive_loss() -> None:
    towers, batch = fresh_towers(), batch_of(SETTINGS.views)
    objective = objective_of(SETTINGS)
    encoded, losses = objective.encode(towers, batch), objective(towers, batch)
    assert len(losses) == 6
    for image, text in SETTINGS.pairs:
        expected = contrastive_loss(encoded[image], encoded[text], towers.logit_scale(), 0.2) / 6
        torch.testing.assert_close(losses[f"{image}_{text}"], expected)


def test_crops_do_not_stand_for_each_other() -> None:
    towers, batch = fresh_towers(), batch_of(SETTINGS.views)
    swapped = replace(
        batch, images={"global_crop": batch.images["local_crop"], "local_crop": batch.images["global_crop"]}
    )
    losses = [total(objective_of(SETTINGS)(towers, shown)).item() for shown in (batch, swapped)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_regions_have_no_order() -> None:
    towers, batch = fresh_towers(), batch_of(SETTINGS.views)
    turned = replace(batch, regions={"regions": batch.regions["regions"].roll(1, dims=1)})
    losses = [objective_of(SETTINGS)(towers, shown) for shown in (batch, turned)]
    torch.testing.assert_close(losses[0], losses[1])


def test_regions_train_only_the_rear_and_patches_nothing() -> None:
    towers, batch = fresh_towers(), batch_of(SETTINGS.views)
    losses = objective_of(SETTINGS)(towers, batch)
    (losses["regions_summary"] + losses["regions_caption"]).backward()
    moved = {name for name, p in towers.image_tower.named_parameters() if p.grad is not None and (p.grad != 0).any()}
    assert not [name for name in moved if name.startswith(("transformer.layers.0.", "patch_embedding", "positions"))]
    assert any(name.startswith("transformer.layers.1.") for name in moved)
    assert any("region" in name for name in moved)
    total(objective_of(SETTINGS)(towers, batch)).backward()
    assert towers.image_tower.patch_embedding.weight.grad is None
    front = towers.image_tower.transformer.layers[0]
    assert all(p.grad is not None and (p.grad != 0).any() for p in front.parameters())


def test_a_fresh_model_costs_the_logarithm_of_the_batch() -> None:
    towers, batch = fresh_towers(), batch_of(SETTINGS.views)
    encoded = objective_of(SETTINGS).encode(towers, batch)
    even = {view: torch.ones_like(vectors) for view, vectors in encoded.items()}
    assert total(pair_losses(even, SETTINGS.pairs, towers.logit_scale(), 0.2)).item() == pytest.approx(math.log(PAIRS))


def test_a_perfect_model_ends_at_the_floor() -> None:
    a, others = SETTINGS.smoothing, PAIRS - 1
    gap = torch.tensor(math.log((1 - a) * others / a), dtype=torch.float64)
    apart = dict.fromkeys(("global_crop", "local_crop", "regions", "summary", "caption", "tags"), torch.eye(PAIRS))
    floor = -(1 - a) * math.log(1 - a) - a * math.log(a / others)
    assert total(pair_losses(apart, SETTINGS.pairs, gap, a)).item() == pytest.approx(floor, rel=1e-6)
    assert total(pair_losses(apart, SETTINGS.pairs, gap * 1.1, a)).item() > floor + 1e-3


def losses_and_gradients(settings: PyramidclipSettings | PyramidDeclipSettings) -> tuple[float, dict[str, Tensor]]:
    towers, objective = fresh_towers(), objective_of(settings)
    whole = batch_of(settings.views)
    loss = total(objective(towers, whole.part(rank() * PAIRS // world(), (rank() + 1) * PAIRS // world())))
    loss.backward()
    gradients = {n: mean_over_ranks(p.grad) for n, p in towers.named_parameters() if p.grad is not None}
    small = {name: gradient for name, gradient in gradients.items() if gradient.numel() < 100_000}
    return float(mean_over_ranks(loss)), small


@pytest.mark.parametrize("settings", [SETTINGS, replace(COMBINED, image_self=0.0)], ids=lambda made: str(made.name))
def test_two_ranks_train_as_one_process_does(settings: PyramidclipSettings | PyramidDeclipSettings) -> None:
    loss_alone, gradients_alone = losses_and_gradients(settings)
    for loss, gradients in run_on_ranks(2, losses_and_gradients, settings):
        assert loss == pytest.approx(loss_alone, rel=1e-11)
        torch.testing.assert_close(gradients, gradients_alone, rtol=1e-8, atol=1e-12)


def test_both_papers_in_one() -> None:
    towers, batch = fresh_towers(), batch_of(COMBINED.views)
    assert COMBINED.views.texts == ("summary", "caption", "tags", "masked_eda", "masked_eda_targets")
    assert len(COMBINED.views.captions) == 4
    objective = objective_of(COMBINED)
    encoded, losses = objective.encode(towers, batch), objective(towers, batch)
    assert list(losses)[6:] == ["multi_view", "image_self", "masked_words", "neighbours"]
    pyramid = objective_of(SETTINGS)(towers, batch)
    for name, loss in pyramid.items():
        torch.testing.assert_close(losses[name], 0.4 * loss)
    both = [
        contrastive_loss(encoded[crop], encoded["masked_eda"], towers.logit_scale(), 0.2)
        for crop in ("global_crop", "local_crop")
    ]
    torch.testing.assert_close(losses["multi_view"], 0.2 * sum(both) / 2)


@pytest.mark.parametrize(
    ("left_out", "texts", "parts"),
    [
        ({"masked_words": 0}, ("summary", "caption", "tags", "eda"), 9),
        ({"pyramid": 0, "image_self": 0}, ("caption", "masked_eda", "masked_eda_targets"), 3),
        ({"regions": False, "multi_view": 0}, ("summary", "caption", "tags", "masked_eda", "masked_eda_targets"), 7),
    ],
)
def test_parts_without_a_weight_are_left_out(left_out: dict[str, float], texts: tuple[str, ...], parts: int) -> None:
    settings = replace(COMBINED, **left_out)  # type: ignore[arg-type]
    assert settings.views.texts == texts
    assert len(objective_of(settings)(fresh_towers(), batch_of(settings.views))) == parts


def test_alone_with_its_pairs_the_combined_one_is_pyramidclip() -> None:
    alone = replace(COMBINED, pyramid=1, multi_view=0, image_self=0, masked_words=0, neighbours=0)
    towers, batch = fresh_towers(), batch_of(alone.views)
    torch.testing.assert_close(objective_of(alone)(towers, batch), objective_of(SETTINGS)(towers, batch))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "model.region_width: expected the numbers of a region's vector with objective pyramidclip"),
        (
            {"cross_global": 0.8},
            "objective.cross_global, objective.cross_local: expected 0 or more, at most 1 together, came 0.8",
        ),
        ({"smoothing": 1}, "smoothing: expected 0 to below 1"),
        ({"block_pairs": 0}, "block_pairs: expected at least 1, came 0"),
    ],
)
def test_mistakes_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(JobError) as caught:
        small_job("out", objective={"name": "pyramidclip", **changes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert small_job("out", objective={"name": "pyramidclip", "regions": False}).objective.views.regions == ()
