"""The towers: CLIP is HiCLIP with affinities of one, every switch does what it says, and padding changes nothing."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from hiclip.batch import Batch, end_positions, trim_padding
from hiclip.model.sizes import ModelSettings, resolve
from hiclip.model.transformer import Mlp
from hiclip.model.two_towers import TowerOutput, TwoTowers

SMALL = ModelSettings(width=64, depth=3, image_px=24, patch_px=8, context=10, embedding=16, vocabulary=100)
PLAIN = dataclasses.replace(SMALL, image_hierarchy=False, text_hierarchy=False)
START, END = 98, 99


def towers(settings: ModelSettings = SMALL, seed: int = 0, dtype: torch.dtype = torch.float64) -> TwoTowers:
    """Towers whose affinities differ from link to link: at the paper's scale fresh ones are nearly all alike."""
    torch.manual_seed(seed)
    model = TwoTowers(settings).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hierarchy.projection" in name and name.endswith("weight") and parameter.ndim == 2:
                parameter.mul_(8)
    return model


def pictures(count: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(5)).to(dtype)


def captions() -> Tensor:
    rows = [[START, 7, 8, 9, 10, END], [START, 0, 0, END], [START, 5, 6, 7, 8, 9, 10, 11, 12, END]]
    return torch.tensor([row + [0] * (10 - len(row)) for row in rows])


def same_weights(settings: ModelSettings, source: TwoTowers, dtype: torch.dtype = torch.float64) -> TwoTowers:
    """Towers of other settings with the weights of `source`, as far as they have such."""
    model = towers(settings, dtype=dtype)
    missing, _ = model.load_state_dict(source.state_dict(), strict=False)
    assert not missing
    return model


def both(model: TwoTowers) -> tuple[Tensor, Tensor]:
    return model.image_tower(pictures()).vector, model.text_tower(captions()).vector


def test_outputs_have_the_shapes_of_the_contract() -> None:
    model = towers()
    image = model.image_tower(pictures(), all_tokens=True)
    text = model.text_tower(captions(), all_tokens=True)
    assert isinstance(image, TowerOutput)
    assert image.tokens is not None
    assert text.tokens is not None
    assert (image.vector.shape, image.tokens.shape) == ((3, 16), (3, 10, 64))
    assert (text.vector.shape, text.tokens.shape) == ((3, 16), (3, 10, 64))
    assert [(right.shape, down.shape) for right, down in image.affinities] == [((3, 3, 2), (3, 2, 3))] * 3
    assert [links.shape for links in text.affinities] == [(3, 9)] * 3
    for below, above in zip(text.affinities[:-1], text.affinities[1:], strict=True):
        assert (above >= below).all()
    plain = towers(PLAIN)
    assert plain.image_tower(pictures()).affinities == []
    assert plain.text_tower(captions()).affinities == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_affinities_forced_to_one_are_plain_clip_bit_for_bit(dtype: torch.dtype) -> None:
    hierarchical = towers(dtype=dtype)
    plain = same_weights(PLAIN, hierarchical, dtype)
    image_ones = [(torch.ones(3, 3, 2, dtype=dtype), torch.ones(3, 2, 3, dtype=dtype))] * 3
    text_ones = [torch.ones(3, 9, dtype=dtype)] * 3
    images = pictures(dtype=dtype)
    forced = hierarchical.image_tower(images, image_ones)
    assert torch.equal(forced.vector, plain.image_tower(images).vector)
    assert torch.equal(hierarchical.text_tower(captions(), text_ones).vector, plain.text_tower(captions()).vector)
    assert forced.affinities[0][0] is image_ones[0][0]
    # And without force they differ: the test could fail.
    assert not torch.allclose(hierarchical.image_tower(images).vector, plain.image_tower(images).vector, atol=1e-3)
    assert not torch.allclose(
        hierarchical.text_tower(captions()).vector, plain.text_tower(captions()).vector, atol=1e-3
    )


def test_a_patch_moves_the_links_around_it_and_no_others() -> None:
    """The top right patch is an end of two links; its two neighbours divide themselves anew, and have two more each."""
    model = towers()
    images, changed = pictures(1), pictures(1)
    changed[:, :, :8, 16:] += 1
    before, after = (model.image_tower(pixels).affinities[0] for pixels in (images, changed))
    moved_right, moved_down = ((one - other).abs() > 1e-6 for one, other in zip(before, after, strict=True))
    assert moved_right[0].tolist() == [[True, True], [False, True], [False, False]]
    assert moved_down[0].tolist() == [[False, True, True], [False, False, True]]


def test_a_word_moves_the_links_around_it_and_no_others() -> None:
    model = towers()
    changed = captions()[2:]
    changed[0, 4] = 50
    before, after = (model.text_tower(tokens).affinities[0][0] for tokens in (captions()[2:], changed))
    assert ((before - after).abs() > 1e-6).tolist() == [False, False, True, True, True, True, False, False, False]


def test_own_affinities_given_back_change_nothing() -> None:
    model = towers()
    image, text = model.image_tower(pictures()), model.text_tower(captions())
    assert torch.equal(model.image_tower(pictures(), image.affinities).vector, image.vector)
    assert torch.equal(model.text_tower(captions(), text.affinities).vector, text.vector)


@pytest.mark.parametrize("settings", [SMALL, PLAIN, dataclasses.replace(SMALL, causal=False)])
def test_computing_the_last_layer_where_it_is_read_changes_nothing(settings: ModelSettings) -> None:
    model = towers(settings)
    for tower, inputs in ((model.image_tower, pictures()), (model.text_tower, captions())):
        results = []
        for all_tokens in (True, False):
            model.zero_grad()
            vector = tower(inputs, all_tokens=all_tokens).vector
            vector.square().sum().backward()
            results.append([vector, *(p.grad for p in tower.parameters() if p.grad is not None)])
        torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)
    assert model.image_tower(pictures()).tokens is None


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("special_tokens_in_chain", [True, False])
def test_more_padding_changes_nothing(causal: bool, special_tokens_in_chain: bool) -> None:
    settings = dataclasses.replace(SMALL, causal=causal, special_tokens_in_chain=special_tokens_in_chain)
    model = towers(settings)
    short = captions()[:2]
    trimmed = short[:, :6]
    longer, shorter = model.text_tower(short), model.text_tower(trimmed)
    torch.testing.assert_close(longer.vector, shorter.vector, rtol=1e-10, atol=1e-12)
    for padded, links in zip(longer.affinities, shorter.affinities, strict=True):
        torch.testing.assert_close(padded[:, :5], links, rtol=1e-10, atol=0)
        assert torch.equal(padded[:, 5:], torch.zeros(2, 4, dtype=torch.float64))
        # The second caption is four tokens, two of them the letter 0 of the vocabulary: its links are its own.
        assert (links[1, [0, 1, 2]] > 0).tolist() == ([True] * 3 if special_tokens_in_chain else [False, True, False])
        assert torch.equal(links[1, 3:], torch.zeros(2, dtype=torch.float64))


def test_the_end_of_a_caption_is_its_largest_token() -> None:
    assert end_positions(captions()).tolist() == [5, 3, 9]
    assert trim_padding(captions()).shape == (3, 10)
    assert torch.equal(trim_padding(captions()[:2]), captions()[:2, :8])


def test_a_causal_text_tower_reads_the_past_only() -> None:
    """Without the hierarchy, whose affinities look one token ahead."""
    changed = captions()
    changed[:, 4] = 50
    for causal, expected in ((True, True), (False, False)):
        model = towers(dataclasses.replace(PLAIN, causal=causal))
        before, after = (model.text_tower(tokens, all_tokens=True).tokens for tokens in (captions(), changed))
        assert before is not None
        assert after is not None
        assert torch.allclose(before[0, :4], after[0, :4]) is expected
        assert not torch.allclose(before[0, 4:6], after[0, 4:6])


SWITCHES = [
    {"affinity_scale": 64.0},
    {"self_link": "zero"},
    {"path_merge": "mean"},
    {"cls_link": "column_only"},
    {"special_tokens_in_chain": False},
    {"causal": False},
    {"hierarchy_layers": (0, 2)},
    {"image_hierarchy": False},
    {"text_hierarchy": False},
]
IMAGE_ONLY = {"path_merge", "cls_link", "image_hierarchy"}
TEXT_ONLY = {"special_tokens_in_chain", "causal", "text_hierarchy"}


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: next(iter(switch)))
def test_a_switch_changes_its_towers_and_no_other(switch: dict[str, object]) -> None:
    model = towers()
    switched = same_weights(dataclasses.replace(SMALL, **switch), model)
    image_same, text_same = (torch.allclose(a, b, atol=1e-6) for a, b in zip(both(model), both(switched), strict=True))
    name = next(iter(switch))
    assert image_same is (name in TEXT_ONLY)
    assert text_same is (name in IMAGE_ONLY)


def test_the_scale_divides_the_scores() -> None:
    """Twice the scale is queries of half the size."""
    model = towers()
    scaled = same_weights(dataclasses.replace(SMALL, affinity_scale=128.0), model)
    with torch.no_grad():
        for name, parameter in scaled.named_parameters():
            if ".hierarchy.projection.query." in name:
                parameter.div_(2)
    torch.testing.assert_close(both(scaled), both(model))


def test_layers_without_affinities_hand_them_past() -> None:
    settings = dataclasses.replace(SMALL, hierarchy_layers=(2, 0))
    model = towers(settings)
    assert resolve(settings).image.hierarchy_layers == (0, 2)
    names = {name.split(".")[3] for name, _ in model.named_parameters() if ".hierarchy." in name}
    assert names == {"0", "2"}
    lower, upper = model.text_tower(captions()).affinities
    assert (upper >= lower).all()
    assert len(model.image_tower(pictures()).affinities) == 2


def test_the_affinity_may_be_narrower_than_the_tower() -> None:
    model = towers(dataclasses.replace(SMALL, affinity_width=16))
    projections = [p for name, p in model.named_parameters() if name.endswith("projection.key.weight")]
    assert [tuple(p.shape) for p in projections] == [(16, 64)] * 6
    vector = model.image_tower(pictures()).vector
    assert vector.isfinite().all()


def test_a_narrower_affinity_is_a_full_one_without_its_other_channels() -> None:
    full = towers()
    narrow = towers(dataclasses.replace(SMALL, affinity_width=16))
    before = both(full)
    with torch.no_grad():
        kept = {}
        for name, parameter in full.named_parameters():
            kept[name] = parameter
            if ".hierarchy.projection.query." in name or ".hierarchy.projection.key." in name:
                parameter[16:] = 0
                kept[name] = parameter[:16]
        narrow.load_state_dict(kept)
    torch.testing.assert_close(both(narrow), both(full))
    assert not any(torch.allclose(one, other, atol=1e-6) for one, other in zip(both(narrow), before, strict=True))


def test_specials_outside_the_chain_see_every_word_fully() -> None:
    settings = dataclasses.replace(SMALL, special_tokens_in_chain=False)
    hierarchy = towers(settings).text_tower.transformer.layers[0].hierarchy
    chain = torch.tensor([[False, True, True, True, False]])
    mask = hierarchy.mask(torch.tensor([[0.0, 0.5, 0.5, 0.0]]), chain).dense()[0]
    expected = torch.ones(5, 5)
    expected[1:4, 1:4] = torch.tensor([[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]])
    torch.testing.assert_close(mask, expected)


def test_a_frozen_patch_embedding_gets_no_gradient() -> None:
    for frozen in (True, False):
        model = towers(dataclasses.replace(SMALL, frozen_patch_embedding=frozen))
        model.image_tower(pictures()).vector.sum().backward()
        assert (model.image_tower.patch_embedding.weight.grad is None) is frozen


def test_every_parameter_is_reached_by_the_gradient() -> None:
    model = towers()
    images, texts = both(model)
    (images * texts).sum().mul(model.logit_scale()).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == set()
    # A key's bias cancels in its softmax. CLS reads patches by C = 1, so the last image layer's links move nothing.
    still = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() < 1e-12}
    biases = {name for name, _ in model.named_parameters() if name.endswith("projection.key.bias")}
    last_image = {name for name, _ in model.named_parameters() if name.startswith("image_tower.transformer.layers.2.h")}
    assert {name for name in still if "attention.key_value.bias" not in name} == biases | last_image


def test_the_logit_scale_starts_at_the_temperature_and_stops_at_its_limit() -> None:
    model = TwoTowers(SMALL)
    assert model.logit_scale().item() == pytest.approx(1 / 0.07, rel=1e-6)
    assert model.logit_scale().shape == ()
    with torch.no_grad():
        model.logit_scale.logarithm.fill_(math.log(1000))
    assert model.logit_scale().item() == pytest.approx(100.0, rel=1e-6)
    # At the limit it may fall again, but not rise.
    for slope, kept in ((1.0, True), (-1.0, False)):
        model.zero_grad()
        (slope * model.logit_scale()).backward()
        assert bool(model.logit_scale.logarithm.grad) is kept
    model.logit_scale.logarithm.data = model.logit_scale.logarithm.data.reshape(1)
    assert model.logit_scale().shape == ()


def test_the_activation_is_quick_gelu() -> None:
    mlp = Mlp(8).double()
    tokens = torch.randn(3, 8, dtype=torch.float64)
    hidden = torch.nn.functional.linear(tokens, mlp.widen.weight, mlp.widen.bias)
    expected = torch.nn.functional.linear(hidden * torch.sigmoid(1.702 * hidden), mlp.narrow.weight, mlp.narrow.bias)
    torch.testing.assert_close(mlp(tokens), expected)


def test_a_fresh_tower_starts_as_clip_does() -> None:
    torch.manual_seed(0)
    settings = ModelSettings(width=128, depth=2, vocabulary=500)
    model = TwoTowers(settings)
    layer = model.text_tower.transformer.layers[0]
    for weight, std in (
        (model.text_tower.token_embedding.weight, 0.02),
        (model.text_tower.positions, 0.01),
        (layer.attention.query.weight, 128**-0.5),
        (layer.attention.output.weight, 128**-0.5 / 2),
        (layer.mlp.widen.weight, 256**-0.5),
        (layer.mlp.narrow.weight, 128**-0.5 / 2),
        (layer.hierarchy.projection.query.weight, 128**-0.5),
        (model.text_tower.projection.weight, 128**-0.5),
        (model.image_tower.positions, 128**-0.5),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert layer.attention.output.bias.abs().max() == 0


@pytest.mark.parametrize("settings", [SMALL, PLAIN])
def test_bf16_autocast_stays_near_float32(settings: ModelSettings) -> None:
    model = towers(settings, dtype=torch.float32)
    exact = (model.image_tower(pictures(dtype=torch.float32)).vector, model.text_tower(captions()).vector)
    with torch.autocast("cpu", torch.bfloat16):
        half = (model.image_tower(pictures(dtype=torch.float32)), model.text_tower(captions()))
    for output, vector in zip(half, exact, strict=True):
        similarity = torch.cosine_similarity(output.vector.float(), vector, dim=-1)
        assert (similarity > 0.999).all()
    for right, down in half[0].affinities:
        assert right.dtype == down.dtype == torch.float32
    sum(output.vector.float().square().sum() for output in half).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_weights_of_bf16_take_pictures_of_float32() -> None:
    model = towers(dtype=torch.bfloat16)
    assert model.image_tower(pictures(dtype=torch.float32)).vector.dtype == torch.bfloat16
    assert model.logit_scale().dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")  # torch's tracer does it
def test_the_towers_are_one_graph() -> None:
    """Nothing in the forward depends on the data, so the compiler needs no break."""
    model = towers(dataclasses.replace(SMALL, depth=1), dtype=torch.float32)
    images = pictures(dtype=torch.float32)
    whole = torch.compile(
        lambda: (model.image_tower(images).vector, model.text_tower(captions()).vector), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(whole(), (model.image_tower(images).vector, model.text_tower(captions()).vector))


def test_a_batch_moves_as_a_whole() -> None:
    batch = Batch({"crop": pictures()}, {"caption": captions()}, ["a", "b", "c"])
    moved = batch.to("meta")
    assert (moved.images["crop"].device.type, moved.tokens["caption"].device.type) == ("meta", "meta")
    assert (len(moved), moved.pair_ids) == (3, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ModelSettings(width=100), "width: expected a multiple of 64"),
        (ModelSettings(image_width=96), "image_width: expected a multiple of 64"),
        (ModelSettings(text_heads=5), "text_heads: expected a divisor of the tower's width"),
        (ModelSettings(patch_px=7), "patch_px: expected a divisor of image_px"),
        (ModelSettings(context=2), "context: expected room"),
        (ModelSettings(depth=0), "depth: expected a number above 0"),
        (
            ModelSettings(depth=2, hierarchy_layers=(0, 2)),
            "hierarchy_layers: expected all, or different layers of 0 to 1",
        ),
        (ModelSettings(hierarchy_layers=()), "hierarchy_layers"),
        (ModelSettings(affinity_scale=-1.0), "affinity_scale: expected a number above 0"),
        (ModelSettings(size="huge"), "size: expected one of tiny, small, vit_b_32, vit_b_16"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_be_are_refused_by_key(settings: ModelSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(settings)


def test_a_towers_own_width_and_depth_win() -> None:
    sizes = resolve(ModelSettings(size="vit_b_32", width=256, text_width=128, depth=6, image_depth=8, image_heads=2))
    assert (sizes.image.width, sizes.image.depth, sizes.image.heads) == (256, 8, 2)
    assert (sizes.text.width, sizes.text.depth, sizes.text.heads) == (128, 6, 2)
    assert (sizes.image.affinity_width, sizes.grid, sizes.context) == (256, 7, 77)
