"""The keys under `data.views` in a job: how views of a pair are drawn. Which are drawn, the objective says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hiclip.data.colours import ColourSettings

Range = tuple[float, float]

_MOCO_COLOURS = ColourSettings(jitter_probability=0.8, grey_probability=0.2, blur_probability=0.5)


@dataclass(frozen=True)
class AugmentationSettings:
    """The views `view_1` and `view_2`, which a model must recognise as one picture. Defaults: MoCo v2's, as in DeCLIP.

    DeCLIP also normalises by ImageNet's mean and deviation; here all pictures are normalised by CLIP's.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    crop_scale: Range = (0.2, 1.0)
    """Least and greatest share of the picture's area that a view shows."""
    flip_probability: float = 0.5
    """How often a view is mirrored."""
    colours: ColourSettings = field(default_factory=lambda: _MOCO_COLOURS)
    """Changes of colour."""

    def __post_init__(self) -> None:
        _check_scales(self, "crop_scale")
        _check_probabilities(self, "flip_probability")


@dataclass(frozen=True)
class ViewSettings:
    """How views are drawn. Defaults: DeCLIP's CLIP baseline, on which HiCLIP builds: a crop and nothing else."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    crop_scale: Range = (0.5, 1.0)
    """Least and greatest share of the picture's area that the view `crop` shows."""
    global_crop_scale: Range = (0.9, 1.0)
    """The same of `global_crop` (PyramidCLIP). A picture too long for that within `crop_ratio` shows its centre, by
    torchvision's rule: 89 % of a 3:2 photograph, 75 % of a 16:9 one. A wider `crop_ratio` lets it move."""
    local_crop_scale: Range = (0.5, 1.0)
    """The same of `local_crop` (PyramidCLIP)."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Least and greatest width over height of any crop, before it is made square."""
    flip_probability: float = 0.0
    """How often one of these three is mirrored. Off: captions name sides, and pictures hold letters."""
    colours: ColourSettings = field(default_factory=ColourSettings)
    """Changes of colour of these three, all off."""
    augmented: AugmentationSettings = field(default_factory=AugmentationSettings)
    """How `view_1` and `view_2` are drawn (DeCLIP)."""

    eda_deletion: float = 0.1
    """How often each word goes where the view `eda` deletes words at random."""
    eda_synonyms: str | None = None
    """File of synonyms for `eda`, a path or s3://: a line has a word and, after tabs, words that may replace it. It
    must not change while a run lasts. Null: nothing is replaced, words are only swapped or deleted."""
    masked_share: float = 0.15
    """How often a token of the views `masked` and `masked_eda` is to be guessed."""
    most_regions: int = 10
    """Regions shown of a picture, the first ones; where it has fewer, absent ones of zeros fill up."""

    def __post_init__(self) -> None:
        _check_scales(self, "crop_scale", "global_crop_scale", "local_crop_scale")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio: expected 0 < least <= greatest, came {self.crop_ratio}")
        _check_probabilities(self, "flip_probability", "eda_deletion", "masked_share")
        if self.most_regions < 1:
            raise ValueError(f"most_regions: expected 1 or more, came {self.most_regions}")


def _check_scales(settings: object, *names: str) -> None:
    for name in names:
        least, greatest = getattr(settings, name)
        if not 0 < least <= greatest <= 1:
            raise ValueError(f"{name}: expected 0 < least <= greatest <= 1, came {(least, greatest)}")


def _check_probabilities(settings: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"{name}: expected 0 to 1, came {getattr(settings, name)}")
