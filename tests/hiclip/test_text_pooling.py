"""A caption's vector as the greatest value of each channel over its places: padding is none of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from hiclip.batch import end_positions, trim_padding
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers

END = 99
MAX = ModelSettings(
    width=64, depth=2, image_px=16, patch_px=8, context=24, embedding=16, vocabulary=100, text_pooling="max"
)


def towers(settings: ModelSettings = MAX) -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers(settings).double()


def captions() -> Tensor:
    rows = [[98, 7, 8, 9, 10, END], [98, 0, 0, END], [98, 5, 6, 7, 8, 9, 10, 11, 12, END]]
    return torch.tensor([row + [0] * (24 - len(row)) for row in rows])


@pytest.mark.parametrize("hierarchy", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(hierarchy: bool, causal: bool) -> None:
    model = towers(dataclasses.replace(MAX, text_hierarchy=hierarchy, causal=causal))
    whole = model.text_tower(captions()).vector
    assert trim_padding(captions()).shape[1] == 16
    torch.testing.assert_close(model.text_tower(trim_padding(captions())).vector, whole)
    torch.testing.assert_close(model.text_tower(captions()[1:2, :4]).vector, whole[1:2])
    changed = captions()
    changed[0, 8] = 50  # behind the end
    torch.testing.assert_close(model.text_tower(changed).vector, whole)


def test_it_is_the_greatest_value_over_the_captions_places() -> None:
    model = towers()
    output = model.text_tower(captions(), all_tokens=True)
    assert output.tokens is not None
    for row, end in enumerate(end_positions(captions()).tolist()):
        greatest = output.tokens[row, : end + 1].max(dim=0).values
        torch.testing.assert_close(output.vector[row], model.text_tower.projection(greatest))
    torch.testing.assert_close(model.text_tower(captions()).vector, output.vector)
    assert model.text_tower(captions()).tokens is None


def test_the_end_alone_says_something_else_with_the_same_weights() -> None:
    at_end, greatest = towers(dataclasses.replace(MAX, text_pooling="end")), towers()
    at_end.load_state_dict(greatest.state_dict())
    assert not torch.allclose(at_end.text_tower(captions()).vector, greatest.text_tower(captions()).vector, atol=1e-3)


def test_the_gradient_goes_to_places_before_the_end_too() -> None:
    """Causal attention and pooling at the end would reach them as well: so the last layer's own MLP is asked."""
    model = towers(dataclasses.replace(MAX, depth=1, text_hierarchy=False))
    stream: list[Tensor] = []
    model.text_tower.final_norm.register_forward_hook(lambda _module, _inputs, output: stream.append(output))
    vector = model.text_tower(captions()).vector
    (gradient,) = torch.autograd.grad(vector.sum(), stream[0])
    reached = gradient.abs().sum(dim=-1) > 0
    places = torch.arange(24)[None] <= end_positions(captions())[:, None]
    assert not reached[~places].any()
    assert (reached[places].float().mean() > 0.5).item()
