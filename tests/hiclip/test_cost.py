"""Closed forms of cost against the model itself, and against the numbers that are published."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hiclip.batch import Batch
from hiclip.model.sizes import ModelSettings, resolve
from hiclip.model.two_towers import TwoTowers
from hiclip.training.cost import device_memory, forward_flops_per_pair, parameters, region_flops, train_flops

SETTINGS = [
    ModelSettings(),
    ModelSettings(image_hierarchy=False, text_hierarchy=False),
    ModelSettings(size="small", hierarchy_layers=(1, 3), affinity_width=64),
    ModelSettings(size="vit_b_32"),
    ModelSettings(size="vit_b_16", text_hierarchy=False),
    ModelSettings(image_width=256, image_depth=5, text_width=128, text_depth=3, embedding=96, context=20, image_px=48),
    ModelSettings(leff=True, front_layers=3, region_width=20, text_pooling="max"),
    ModelSettings(size="vit_b_32", image_hierarchy=False, leff=True, front_layers=9, region_width=2052),
    ModelSettings(size="resnet_tiny", image_hierarchy=False, region_width=20),
    ModelSettings(size="resnet_50", image_hierarchy=False, text_pooling="max", region_width=2052),
    ModelSettings(size="resnet_50", image_hierarchy=False, image_width=80, image_px=288),
]
WITH_REGIONS = [settings for settings in SETTINGS if settings.region_width]


def clip(size: str) -> ModelSettings:
    return ModelSettings(size=size, image_hierarchy=False, text_hierarchy=False)  # type: ignore[arg-type]


def on_meta(settings: ModelSettings) -> TwoTowers:
    with torch.device("meta"):
        return TwoTowers(settings)


@pytest.mark.parametrize("settings", SETTINGS)
def test_parameters_are_those_of_the_module(settings: ModelSettings) -> None:
    assert parameters(settings) == sum(parameter.numel() for parameter in on_meta(settings).parameters())


@pytest.mark.parametrize("all_tokens", [True, False])
@pytest.mark.parametrize("settings", SETTINGS)
def test_flops_are_those_that_torch_counts(settings: ModelSettings, all_tokens: bool) -> None:
    model, sizes, pairs = on_meta(settings), resolve(settings), 2
    side, context = sizes.image_px, sizes.context
    with FlopCounterMode(display=False) as counter:
        model.image_tower(torch.empty(pairs, 3, side, side, device="meta"), all_tokens=all_tokens)
        model.text_tower(torch.empty(pairs, context, device="meta", dtype=torch.long), all_tokens=all_tokens)
    counted = counter.get_total_flops() / pairs
    assert forward_flops_per_pair(settings, all_tokens=all_tokens) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("all_tokens", [True, False])
@pytest.mark.parametrize("settings", WITH_REGIONS)
def test_flops_of_regions_are_those_that_torch_counts(settings: ModelSettings, all_tokens: bool) -> None:
    pairs, regions = 2, 10
    with FlopCounterMode(display=False) as counter:
        vectors = torch.empty(pairs, regions, settings.region_width or 0, device="meta")
        on_meta(settings).image_tower.embed_regions(vectors, all_tokens=all_tokens)
    counted = counter.get_total_flops() / pairs
    assert region_flops(settings, regions, all_tokens=all_tokens) == pytest.approx(counted, rel=0.02)


def test_the_published_resnet() -> None:
    """OpenAI's RN50 has 102,007,137 parameters, 38,316,896 of them in the image tower."""
    settings = ModelSettings(size="resnet_50", image_hierarchy=False, text_hierarchy=False)
    assert parameters(settings) == 102_007_137
    assert sum(parameter.numel() for parameter in on_meta(settings).image_tower.parameters()) == 38_316_896


def test_what_pyramidclip_adds_to_clip() -> None:
    """41,472 parameters for every LeFF at B/32, and the regions' projection of 2052 x 768; 0.5 GFLOP for regions."""
    paper = dataclasses.replace(clip("vit_b_32"), leff=True, front_layers=9, region_width=2052)
    assert parameters(paper) - parameters(clip("vit_b_32")) == 9 * 41_472 + 2052 * 768
    assert region_flops(paper, 10) == pytest.approx(0.5e9, rel=0.1)


def test_the_published_sizes() -> None:
    """CLIP and HiCLIP at B/32 and B/16: 151.28, 171.79, 149.62 and 170.13 M parameters, 14.78 GFLOP and 16 % more."""
    assert [parameters(clip(size)) for size in ("vit_b_32", "vit_b_16")] == [151_277_313, 149_620_737]
    affinities = sum(12 * 2 * (width**2 + 2 * width) for width in (768, 512))  # a norm and two maps a layer
    assert parameters(ModelSettings(size="vit_b_32")) == 151_277_313 + affinities
    hierarchical = [ModelSettings(size="vit_b_32"), ModelSettings(size="vit_b_16")]
    assert [round(parameters(settings) / 1e6, 2) for settings in hierarchical] == [171.79, 170.13]
    b_32, b_16 = (forward_flops_per_pair(clip(size)) for size in ("vit_b_32", "vit_b_16"))
    assert (round(b_32 / 1e9, 2), round(b_16 / 1e9, 2)) == (14.78, 41.09)
    assert forward_flops_per_pair(hierarchical[0]) / b_32 == pytest.approx(1.160, abs=5e-4)
    assert forward_flops_per_pair(hierarchical[1]) / b_16 == pytest.approx(1.159, abs=5e-4)


def test_training_is_three_forwards_of_every_pair_seen() -> None:
    settings = ModelSettings()
    assert train_flops(settings, 1000) == 3000 * forward_flops_per_pair(settings)


def test_zero_shards_what_its_stage_says() -> None:
    settings = clip("vit_b_32")
    weights = 4 * parameters(settings)
    held = {stage: device_memory(settings, 128, "bf16", stage, 8) for stage in (0, 1, 2, 3)}
    assert [memory.weights / weights for memory in held.values()] == [1, 1, 1, 1 / 8]
    # In stage 0 all of them copied into one tensor; then a bucket of an eighth, and a copy of the own part.
    assert [memory.gradients / weights for memory in held.values()] == [2, 1 + 1 / 8 + 1 / 8, 3 / 8, 2 / 8]
    assert device_memory(settings, 128, "bf16", None, 1).gradients == weights
    assert [memory.optimizer / weights for memory in held.values()] == [2, 3 / 8, 3 / 8, 3 / 8]
    memory = held[1]
    assert memory.activations > memory.gradients
    assert memory.total == memory.weights + memory.optimizer + memory.activations + memory.logits
    one, two = (device_memory(settings, pairs, "bf16", 1, 8).activations for pairs in (1, 2))
    assert memory.activations == one + 127 * (two - one)


def test_offloading_takes_the_optimizer_off_the_device() -> None:
    settings = clip("vit_b_32")
    weights = 4 * parameters(settings)
    kept, moved = (device_memory(settings, 128, "bf16", 2, 8, offload=offload) for offload in (False, True))
    assert (moved.optimizer, moved.host) == (0, 5 / 8 * weights)
    assert kept.total - moved.total == kept.optimizer
    assert kept.host == 0


def test_activation_checkpointing_takes_a_fifth_of_the_activations() -> None:
    for size in ("vit_b_32", "vit_b_16"):
        for settings in (clip(size), ModelSettings(size=size)):  # type: ignore[arg-type]
            whole, again = (
                device_memory(settings, 512, "bf16", 1, 8, checkpointing=again).activations for again in (False, True)
            )
            assert again < whole / 5


def test_a_micro_batch_takes_the_activations_of_a_chunk_and_the_gradients_twice() -> None:
    settings = clip("vit_b_32")
    chunk, cached = (device_memory(settings, *of) for of in ((64, "bf16", None, 1), (4096, "bf16", None, 1, 64)))
    assert (cached.activations, cached.gradients) == (chunk.activations, 2 * chunk.gradients)
    assert (cached.weights, cached.optimizer) == (chunk.weights, chunk.optimizer)
    assert cached.total < 10e9 < 80e9 < device_memory(settings, 4096, "bf16", 1, 1).total


KEPT = [
    ModelSettings(depth=6),
    ModelSettings(image_hierarchy=False, text_hierarchy=False, depth=6),
    ModelSettings(image_hierarchy=False, text_depth=1, depth=6, leff=True, front_layers=5),
    ModelSettings(size="resnet_tiny", image_hierarchy=False, text_depth=1, image_width=32),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("settings", KEPT)
def test_activations_are_near_what_autograd_keeps(precision: str, settings: ModelSettings) -> None:
    model, pairs = TwoTowers(settings), 8
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    batch = Batch({"crop": torch.randn(pairs, 3, 64, 64)}, {"caption": torch.ones(pairs, 32, dtype=torch.long)}, [])
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        outputs = [
            model.image_tower(batch.images["crop"]),
            model.text_tower(batch.tokens["caption"]),
        ]
    assert len(outputs) == 2
    estimate = device_memory(settings, pairs, "bf16" if precision == "bf16" else "fp32", 0, 1).activations
    assert estimate == pytest.approx(sum(kept.values()), rel=0.25)


def test_a_frozen_patch_embedding_still_counts() -> None:
    frozen = dataclasses.replace(ModelSettings(), frozen_patch_embedding=True)
    assert parameters(frozen) == parameters(ModelSettings())
