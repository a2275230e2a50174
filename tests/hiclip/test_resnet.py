"""CLIP's ResNet: its structure against OpenAI's names and shapes, its start, its parts, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn

from hiclip.model.resnet import AttentionPool, Block, ResNetTower
from hiclip.model.sizes import ModelSettings, ResNetSize, resolve
from hiclip.model.two_towers import TwoTowers

TINY = ModelSettings(
    size="resnet_tiny", image_hierarchy=False, text_width=64, text_depth=1, vocabulary=100, embedding=24
)


def tower(settings: ModelSettings = TINY, seed: int = 0) -> ResNetTower:
    torch.manual_seed(seed)
    model = TwoTowers(settings).image_tower
    assert isinstance(model, ResNetTower)
    return model


def pictures(pairs: int = 3, px: int = 64) -> Tensor:
    return torch.randn(pairs, 3, px, px, generator=torch.Generator().manual_seed(5))


def openai_shapes() -> list[tuple[int, ...]]:
    """Shapes of the image tower of OpenAI's RN50 state dict in its order, counters of batches left out."""

    def norm(width: int) -> list[tuple[int, ...]]:
        return [(width,)] * 4  # weight, bias, running mean and variance

    def conv(outputs: int, inputs: int, side: int) -> list[tuple[int, ...]]:
        return [(outputs, inputs, side, side), *norm(outputs)]

    shapes = [*conv(32, 3, 3), *conv(32, 32, 3), *conv(64, 32, 3)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [*conv(width, inputs, 1), *conv(width, width, 3), *conv(4 * width, width, 1)]
            shapes += conv(4 * width, inputs, 1) if block == 0 else []  # downsample.0 and .1
            inputs = 4 * width
    linears = [(2048, 2048), (2048,)] * 3 + [(1024, 2048), (1024,)]
    return [*shapes, (50, 2048), *linears]


def test_the_state_is_openais_in_order_and_shape() -> None:
    with torch.device("meta"):
        model = TwoTowers(ModelSettings(size="resnet_50", image_hierarchy=False))
    assert [tuple(tensor.shape) for tensor in model.image_tower.state_dict().values()] == openai_shapes()


def test_the_tower_has_the_shapes_of_the_contract() -> None:
    output = tower()(pictures(), all_tokens=True)
    assert output.tokens is not None
    assert (output.vector.shape, output.tokens.shape, output.affinities) == ((3, 24), (3, 5, 512), [])
    torch.testing.assert_close(output.tokens[:, 0], output.tokens[:, 1:].mean(dim=1))
    plain = tower()(pictures())
    assert plain.tokens is None
    assert torch.equal(plain.vector, output.vector)


def test_a_fresh_resnet_starts_as_clips() -> None:
    model = tower(dataclasses.replace(TINY, image_width=64))
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert all((block.norm3.weight == 0).all() for block in blocks)
    assert all((block.norm2.weight == 1).all() for block in blocks)
    for weight in (model.pool.query.weight, model.pool.key.weight, model.pool.output.weight, model.pool.positions):
        assert weight.std().item() == pytest.approx(2048**-0.5, rel=0.05)
    # A fresh block adds nothing to what goes around it.
    block = blocks[1]
    assert block.shortcut is not None
    maps = torch.randn(2, 256, 8, 8)
    torch.testing.assert_close(block(maps), block.shortcut(maps).relu())


def test_a_stride_skips_no_place() -> None:
    """Averages in place of strides: every single place moves the answer; a strided 1 x 1 would see one of four."""
    block = Block(4, 2, stride=2).eval()
    nn.init.ones_(block.norm3.weight)
    maps = torch.randn(1, 4, 4, 4).requires_grad_()
    block(maps).square().sum().backward()
    assert maps.grad is not None
    assert (maps.grad.abs().sum(dim=1) > 0).all()


def test_the_pool_is_torchs_attention() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(ResNetSize(8, (1, 1, 1)), 2, 6).double()
    tokens = torch.randn(3, 5, 128, dtype=torch.float64)
    expected, _ = nn.functional.multi_head_attention_forward(
        tokens[:, :1].transpose(0, 1), tokens.transpose(0, 1), tokens.transpose(0, 1), 128, pool.heads, None,
        torch.cat((pool.query.bias, pool.key.bias, pool.value.bias)), None, None, False, 0.0,
        pool.output.weight, pool.output.bias, use_separate_proj_weight=True,
        q_proj_weight=pool.query.weight, k_proj_weight=pool.key.weight, v_proj_weight=pool.value.weight,
    )  # fmt: skip
    assert pool.heads == 2
    torch.testing.assert_close(pool(tokens), expected[0])


def test_the_gradient_of_a_block_and_of_the_pool() -> None:
    torch.manual_seed(0)
    block = Block(3, 2, stride=2).double()
    nn.init.uniform_(block.norm3.weight)
    maps = torch.randn(3, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda maps, *_: block(maps), (maps, *block.parameters()), fast_mode=True)
    pool = AttentionPool(ResNetSize(4, (1, 1, 1)), 2, 3).double()
    tokens = torch.randn(2, 5, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda tokens, *_: pool(tokens), (tokens, *pool.parameters()), fast_mode=True)


def test_a_held_resnet_sees_one_picture_at_a_time() -> None:
    model = tower()
    model(pictures(8))
    model.eval()
    torch.testing.assert_close(model(pictures()).vector[:1], model(pictures()[:1]).vector, rtol=1e-4, atol=1e-5)


def test_every_parameter_but_behind_zero_gains_is_reached_by_the_gradient() -> None:
    model = tower()
    for block in (module for module in model.modules() if isinstance(module, Block)):
        nn.init.ones_(block.norm3.weight)
    model(pictures()).vector.square().sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_hierarchy": True}, "image_hierarchy: expected false with size resnet_tiny"),
        ({"leff": True}, "leff: expected false with size resnet_tiny"),
        ({"front_layers": 2}, "front_layers: expected null with size resnet_tiny"),
        ({"frozen_patch_embedding": True}, "frozen_patch_embedding: expected false"),
        ({"width": 64}, "width: expected null with size resnet_tiny .*, came 64"),
        ({"image_depth": 3}, "image_depth: expected null"),
        ({"patch_px": 16}, "patch_px: expected null"),
        ({"image_width": 9}, "image_width: expected an even number"),
        ({"image_px": 80}, "image_px: expected a multiple of a ResNet's stride"),
    ],
)
def test_keys_that_say_nothing_to_a_resnet_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(dataclasses.replace(TINY, **changes))  # type: ignore[arg-type]


def test_the_hierarchy_of_words_stands_beside_a_resnet() -> None:
    model = TwoTowers(TINY)
    assert resolve(TINY).text.hierarchy_layers == (0,)
    assert len(model.text_tower(torch.tensor([[1, 5, 99, 0]])).affinities) == 1


def test_a_resnet_keeps_its_running_statistics_in_its_state() -> None:
    names = tower().state_dict()
    kinds = itertools.groupby(sorted(name.rsplit(".", 1)[1] for name in names))
    counts = {kind: len(list(group)) for kind, group in kinds}
    assert counts["running_mean"] == counts["running_variance"] == 3 + 4 * 4
