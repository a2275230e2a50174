"""Both towers under every structural switch are one graph: the compiler meets nothing that depends on the data."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers

VIT = ModelSettings(
    width=64, depth=2, image_px=16, patch_px=8, context=8, embedding=16, vocabulary=100, front_layers=1, region_width=7
)
RESNET = ModelSettings(
    size="resnet_tiny", image_hierarchy=False, text_width=64, text_depth=1, context=8, embedding=16, vocabulary=100,
    region_width=7,
)  # fmt: skip
SWITCHED = [dataclasses.replace(VIT, leff=True, text_pooling="max"), RESNET]


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")  # torch's tracer does it
@pytest.mark.parametrize("settings", SWITCHED, ids=["leff_and_max", "resnet"])
def test_the_towers_are_one_graph(settings: ModelSettings) -> None:
    torch.manual_seed(0)
    model = TwoTowers(settings)
    px = 64 if settings is RESNET else 16
    images, regions = torch.randn(3, 3, px, px), torch.randn(3, 4, 7)
    captions = torch.tensor([[98, 5, 99, 0, 0, 0, 0, 0]] * 3)

    def vectors() -> tuple[torch.Tensor, ...]:
        pictures, objects = model.image_tower(images), model.image_tower.embed_regions(regions)
        return pictures.vector, objects.vector, model.text_tower(captions).vector

    compiled = torch.compile(vectors, backend="eager", fullgraph=True)()
    torch.testing.assert_close(compiled, vectors(), rtol=1e-4, atol=1e-5)
