"""The methods whose steps are timed, each ready to take one: a model, its objective, an optimizer and a random batch.

Everything is what training uses (`Pretraining`, `PlainEngine`), but the data: pictures of noise and captions that fill
the context, so that no method gains by trimming padding.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hiclip.batch import MASK_TOKEN, NOT_PREDICTED, TARGETS, Batch, Views
from hiclip.model.sizes import ModelSettings, SizeName, Sizes, resolve
from hiclip.model.tower_output import TowerOutput
from hiclip.model.two_towers import LogitScale, TwoTowers
from hiclip.objectives import ObjectiveSettings
from hiclip.objectives.clip import ClipSettings
from hiclip.objectives.declip import DeclipSettings
from hiclip.objectives.pyramidclip import PyramidclipSettings
from hiclip.training.engine import PlainEngine, Pretraining
from hiclip.training.optimizer import OptimizerSettings
from hiclip.training.published_config import make_config

_REGIONS, _REGION_WIDTH = 10, 2052
"""PyramidCLIP's: regions of a picture, and numbers of each."""
_MASKED_SHARE = 0.15
_START = 49_406
_COUNTED_PAIRS = 2
_OPTIMIZER = OptimizerSettings(learning_rate=1e-5)

THEIRS = "transformers"
"""The name of the method that is not ours: CLIPModel, with CLIP's loss and our optimizer."""


@dataclass(frozen=True)
class Method:
    """What one row of the table trains."""

    objective: ObjectiveSettings
    image_hierarchy: bool = False
    text_hierarchy: bool = False
    affinity_width: int | None = None

    def model(self, size: SizeName) -> ModelSettings:
        """The settings of its model."""
        settings = ModelSettings(size, image_hierarchy=self.image_hierarchy, text_hierarchy=self.text_hierarchy)
        if self.affinity_width is not None:
            settings = replace(settings, affinity_width=self.affinity_width)
        if isinstance(self.objective, DeclipSettings):
            return replace(settings, vocabulary=MASK_TOKEN + 1, frozen_patch_embedding=True)
        if isinstance(self.objective, PyramidclipSettings):
            front = resolve(settings).image.depth * 3 // 4
            return replace(
                settings, text_pooling="max", frozen_patch_embedding=True, leff=True, front_layers=front,
                region_width=_REGION_WIDTH,
            )  # fmt: skip
        return settings


METHODS = {
    "clip": Method(ClipSettings()),
    "hiclip": Method(ClipSettings(), image_hierarchy=True, text_hierarchy=True),
    "hiclip_image": Method(ClipSettings(), image_hierarchy=True),
    "hiclip_text": Method(ClipSettings(), text_hierarchy=True),
    "hiclip_narrow": Method(ClipSettings(), image_hierarchy=True, text_hierarchy=True, affinity_width=64),
    "declip": Method(DeclipSettings()),
    "hideclip": Method(DeclipSettings(), image_hierarchy=True, text_hierarchy=True),
    "pyramidclip": Method(PyramidclipSettings()),
    "hipyramidclip": Method(PyramidclipSettings(), image_hierarchy=True, text_hierarchy=True),
}
"""Rows that are ours. `hiclip_narrow` has `affinity_width: 64`; the prefix `hi` means both hierarchies."""


@dataclass(frozen=True)
class Setup:
    """What all rows of one table have in common."""

    size: SizeName
    pairs: int
    bf16: bool
    compiled: bool
    device: str


class Trainee:
    """A method that takes training steps."""

    def __init__(self, name: str, setup: Setup) -> None:
        torch.manual_seed(0)
        method = METHODS["clip" if name == THEIRS else name]
        model = method.model(setup.size)
        sizes, objective = resolve(model), method.objective.build(model)
        towers = cast(TwoTowers, TheirTowers(model)) if name == THEIRS else TwoTowers(model)
        module = Pretraining(towers, objective, setup.bf16)
        few = random_batch(objective.views, sizes, _COUNTED_PAIRS)
        self.flops_per_pair = _forward_flops(module, few) / _COUNTED_PAIRS
        """Of the forward, as torch counts them: two for a multiply-add, in matrix products and convolutions alone."""
        self._batch = random_batch(objective.views, sizes, setup.pairs).to(setup.device)
        self.module = module.to(setup.device)
        self._engine = PlainEngine(self.module, _OPTIMIZER)
        if setup.compiled:
            module.towers.image_tower.compile()
            module.towers.text_tower.compile()

    def step(self) -> None:
        """One step on the batch: forward, backward, optimizer."""
        losses = self._engine.losses(self._batch)
        self._engine.update(torch.stack(list(losses.values())).sum(), _OPTIMIZER.learning_rate)

    def resident_bytes(self) -> int:
        """What stays in memory between steps: weights, buffers, the optimizer's moments, the batch."""
        parameters, batch = self.module.parameters(), self._batch
        weights = sum(parameter.nbytes * (3 if parameter.requires_grad else 1) for parameter in parameters)
        views = (batch.images, batch.tokens, batch.regions)
        shown = sum(tensor.nbytes for view in views for tensor in view.values())
        return weights + sum(buffer.nbytes for buffer in self.module.buffers()) + shown


def trainable(name: str) -> bool:
    """Whether the method can be timed here: transformers may not be installed."""
    return name != THEIRS or importlib.util.find_spec("transformers") is not None


class TheirTowers(nn.Module):
    """CLIPModel in the place of our towers, so that everything around it is the same."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        from transformers import CLIPConfig, CLIPModel

        config = make_config(settings, "transformers")
        clip = CLIPModel(CLIPConfig(**{key: config[key] for key in ("vision_config", "text_config", "projection_dim")}))
        self.image_tower = _TheirTower(clip.vision_model, clip.visual_projection, "pixel_values")
        self.text_tower = _TheirTower(clip.text_model, clip.text_projection, "input_ids")
        self.logit_scale = LogitScale(settings.initial_temperature, settings.max_logit_scale)


class _TheirTower(nn.Module):
    def __init__(self, tower: nn.Module, projection: nn.Module, shown: str) -> None:
        super().__init__()
        self.tower, self.projection, self.shown = tower, projection, shown

    def forward(self, view: Tensor) -> TowerOutput[Any]:
        return TowerOutput(self.projection(self.tower(**{self.shown: view}).pooler_output), None, [])


def random_batch(views: Views, sizes: Sizes, pairs: int) -> Batch:
    """Noise in the shapes of every view; captions fill the context."""
    generator = torch.Generator().manual_seed(1)
    captions = {view: _captions(sizes, pairs, generator) for view in views.captions}
    targets = {}
    for view in views.texts:
        if view.endswith(TARGETS):
            masked = captions[view.removesuffix(TARGETS)]
            hidden = torch.rand(masked.shape, generator=generator) < _MASKED_SHARE
            hidden[:, [0, -1]] = False
            targets[view] = masked.masked_fill(~hidden, NOT_PREDICTED)
            masked[hidden] = MASK_TOKEN
    side = sizes.image_px
    images = {view: torch.randn(pairs, 3, side, side, generator=generator) for view in views.images}
    regions = {view: torch.rand(pairs, _REGIONS, _REGION_WIDTH, generator=generator) for view in views.regions}
    return Batch(images, captions | targets, [str(pair) for pair in range(pairs)], regions)


def _captions(sizes: Sizes, pairs: int, generator: torch.Generator) -> Tensor:
    """(pairs, L): words between CLIP's start and end token."""
    tokens = torch.randint(1, _START, (pairs, sizes.context), generator=generator)
    tokens[:, 0], tokens[:, -1] = _START, _START + 1
    return tokens


@torch.no_grad()
def _forward_flops(module: Pretraining, batch: Batch) -> int:
    # The fused attention of a CPU is not in the counter's list; the plain one is the same products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(batch)
    return int(counter.get_total_flops())
