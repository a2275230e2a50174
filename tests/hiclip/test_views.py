"""Views: chance belongs to the pair, crops follow torchvision's rule, colours change only when they are told to."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from hiclip.data.chance import Chance
from hiclip.data.colours import ColourSettings, change_colours
from hiclip.data.image_views import IMAGE_VIEWS, random_box, random_crop
from hiclip.data.images import Picture, Pixels
from hiclip.data.region_views import REGION_VIEWS
from hiclip.data.text_views import TEXT_VIEWS
from hiclip.data.view_settings import AugmentationSettings, ViewSettings
from hiclip.objectives import OBJECTIVES

CHANCE = Chance(seed=1, pair_id="00ff", epoch=2, view="crop")


def picture(height: int = 90, width: int = 120) -> Picture:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * columns / width, 255 * rows / height, 128 + 0 * rows], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Picture(buffer.getvalue())


def crop(chance: Chance = CHANCE, **options: object) -> Pixels:
    return random_crop(picture(), {}, 32, chance, ViewSettings(**options))  # type: ignore[arg-type]


def test_chance_is_the_same_everywhere_and_for_ever() -> None:
    """Resumed runs rely on these numbers."""
    assert CHANCE.generator().random(2).tolist() == [0.8348088747027416, 0.20625296403733018]
    assert CHANCE.generator().random() == CHANCE.generator().random()


@pytest.mark.parametrize(
    "other",
    [
        CHANCE._replace(seed=2),
        CHANCE._replace(pair_id="00fe"),
        CHANCE._replace(epoch=3),
        CHANCE._replace(view="second_crop"),
    ],
)
def test_every_part_of_a_chance_matters(other: Chance) -> None:
    assert CHANCE.generator().random() != other.generator().random()
    assert (crop(CHANCE) != crop(other)).any()


def test_a_crop_is_a_part_of_the_picture() -> None:
    """Red says the column and green the row, so the corners of the crop tell its box."""
    for epoch in range(50):
        pixels = crop(CHANCE._replace(epoch=epoch), crop_scale=(0.5, 0.6)).astype(float)
        assert pixels.shape == (32, 32, 3)
        width = (pixels[16, 31, 0] - pixels[16, 0, 0]) / 255 * 120 * 32 / 31
        height = (pixels[31, 16, 1] - pixels[0, 16, 1]) / 255 * 90 * 32 / 31
        assert 0.45 < width * height / (90 * 120) < 0.65
        assert 0.7 < width / height < 1.42


@pytest.mark.parametrize(("view", "least"), [("global_crop", 0.9), ("local_crop", 0.5), ("crop", 0.5)])
def test_pyramids_crops_differ_in_size(view: str, least: float) -> None:
    shares = []
    for epoch in range(100):
        chance = CHANCE._replace(epoch=epoch, view=view)
        pixels = IMAGE_VIEWS[view].draw(picture(), {}, 32, chance, ViewSettings()).astype(float)
        width = (pixels[16, 31, 0] - pixels[16, 0, 0]) / 255 * 32 / 31
        height = (pixels[31, 16, 1] - pixels[0, 16, 1]) / 255 * 32 / 31
        shares.append(width * height)
    assert least - 0.06 < min(shares) < least + 0.1
    assert max(shares) > 0.9


def test_augmented_views_are_mocos() -> None:
    """Mirrored half of the time, grey a fifth of it, coloured otherwise; and the two of an epoch differ."""
    greys, mirrored = [], []
    for epoch in range(200):
        first, second = (
            IMAGE_VIEWS[view].draw(picture(), {}, 32, CHANCE._replace(epoch=epoch, view=view), ViewSettings())
            for view in ("view_1", "view_2")
        )
        assert (first != second).any()
        greys.append(not np.ptp(first.astype(int), axis=-1).any())
        plain = AugmentationSettings(colours=ColourSettings())
        uncoloured = IMAGE_VIEWS["view_1"].draw(
            picture(), {}, 32, CHANCE._replace(epoch=epoch, view="view_1"), ViewSettings(augmented=plain)
        )
        mirrored.append(uncoloured[16, 0, 0] > uncoloured[16, 31, 0])
    assert 20 < sum(greys) < 65
    assert 70 < sum(mirrored) < 130


def test_a_mirrored_view_is_the_other_way_round() -> None:
    plain, mirrored = crop(), crop(flip_probability=1.0)
    assert (mirrored == plain[:, ::-1]).all()
    flips = [(crop(CHANCE._replace(epoch=epoch), flip_probability=0.5)[0, 0, 0] > 128) for epoch in range(200)]
    assert 70 < sum(flips) < 130


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 10**6))
def test_boxes_lie_inside(height: int, width: int, epoch: int) -> None:
    box = random_box(height, width, CHANCE._replace(epoch=epoch).generator(), (0.5, 1), (3 / 4, 4 / 3))
    assert box.left >= 0
    assert box.width >= 1
    assert box.left + box.width <= width
    assert box.top >= 0
    assert box.height >= 1
    assert box.top + box.height <= height


def test_boxes_are_spread_as_the_rule_says() -> None:
    """Of a square: areas even between the limits, logarithms of shapes even where they fit, places even."""
    random = np.random.default_rng(0)
    boxes = [random_box(1000, 1000, random, (0.2, 0.4), (3 / 4, 4 / 3)) for _ in range(4000)]
    areas = np.array([box.width * box.height for box in boxes]) / 1e6
    shapes = np.log([box.width / box.height for box in boxes])
    places = np.array([box.left / (1000 - box.width) for box in boxes])
    assert abs(areas.mean() - 0.3) < 0.004
    assert areas.min() > 0.199
    assert areas.max() < 0.401
    assert abs(shapes.mean()) < 0.02
    assert abs(np.abs(shapes).max() - math.log(4 / 3)) < 0.01
    assert np.abs(np.percentile(places, [10, 50, 90]) - [0.1, 0.5, 0.9]).max() < 0.04


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1)])
def test_very_long_pictures_show_their_centre(height: int, width: int) -> None:
    box = random_box(height, width, CHANCE.generator(), (0.5, 1), (3 / 4, 4 / 3))
    assert abs(box.left + box.width / 2 - width / 2) <= 1
    assert abs(box.top + box.height / 2 - height / 2) <= 1
    assert min(height, width) <= max(box.width, box.height) <= math.ceil(4 / 3 * min(height, width))


def test_the_lists_hold_what_objectives_ask_for() -> None:
    for kind in OBJECTIVES.values():
        views = kind().views
        assert set(views.images) <= set(IMAGE_VIEWS)
        assert set(views.texts) <= set(TEXT_VIEWS)
        assert set(views.regions) <= set(REGION_VIEWS)
    view = TEXT_VIEWS["caption"]
    assert view.columns == ("caption",)
    assert view.draw({"caption": "a cat"}, CHANCE, ViewSettings()) == "a cat"


def test_jobs_can_hold_the_settings() -> None:
    adapter = TypeAdapter(ViewSettings)
    read = adapter.validate_python({"crop_scale": [0.6, 1], "colours": {"grey_probability": 0.2}})
    assert read == ViewSettings(crop_scale=(0.6, 1.0), colours=ColourSettings(grey_probability=0.2))
    for wrong, says in (
        ({"crop_scale": [0.9, 0.5]}, "crop_scale: expected 0 < least <= greatest <= 1"),
        ({"crop_ratio": [0, 1]}, "crop_ratio: expected"),
        ({"flip_probability": 2}, "flip_probability: expected 0 to 1, came 2"),
        ({"local_crop_scale": [0, 0.5]}, "local_crop_scale: expected 0 < least"),
        ({"augmented": {"flip_probability": 2}}, "flip_probability: expected 0 to 1, came 2"),
        ({"masked_share": 1.5}, "masked_share: expected 0 to 1, came 1.5"),
        ({"most_regions": 0}, "most_regions: expected 1 or more, came 0"),
        ({"colours": {"hue": 0.7}}, "hue: expected 0 to 0.5, came 0.7"),
        ({"colours": {"blur_sigma_px": [3, 1]}}, "blur_sigma_px: expected"),
        ({"crop_sale": [0.5, 1]}, "crop_sale"),
    ):
        with pytest.raises(ValidationError, match=says):
            adapter.validate_python(wrong)


def grey_and_red() -> Pixels:
    pixels = np.full((8, 8, 3), 100, dtype=np.uint8)
    pixels[:, 4:] = (200, 50, 50)
    return pixels


def recoloured(settings: ColourSettings, count: int = 200) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(count, 8, 8, 3) views of one picture in as many epochs."""
    drawn = [change_colours(grey_and_red(), CHANCE._replace(epoch=e).generator(), settings) for e in range(count)]
    return np.stack(drawn).astype(float)


def test_colours_stay_unless_told_otherwise() -> None:
    assert ColourSettings().off
    assert (recoloured(ColourSettings(), 3) == grey_and_red()).all()


def test_brightness_scales() -> None:
    views = recoloured(ColourSettings(jitter_probability=1, brightness=0.4, contrast=0, saturation=0, hue=0))
    factors = views[:, 0, 0, 0] / 100
    assert np.abs(views[:, 0, 0] - factors[:, None] * 100).max() < 1
    assert 0.59 < factors.min() < 0.65
    assert 1.35 < factors.max() < 1.41


def test_contrast_keeps_the_mean_and_saturation_keeps_greys() -> None:
    contrast = recoloured(ColourSettings(jitter_probability=1, brightness=0, contrast=0.4, saturation=0, hue=0))
    spread = contrast[:, 0, 7, 0] - contrast[:, 0, 0, 0]
    assert spread.min() < 65
    assert spread.max() > 135
    saturation = recoloured(ColourSettings(jitter_probability=1, brightness=0, contrast=0, saturation=0.4, hue=0))
    assert (saturation[:, 0, 0] == 100).all()
    colourfulness = saturation[:, 0, 7, 0] - saturation[:, 0, 7, 1]
    assert colourfulness.min() < 95
    assert colourfulness.max() > 200


def test_hue_turns_around_the_circle() -> None:
    views = recoloured(ColourSettings(jitter_probability=1, brightness=0, contrast=0, saturation=0, hue=0.5))
    assert (views[:, 0, 0] == 100).all()
    strongest = views[:, 0, 7].argmax(axis=-1)
    assert set(strongest.tolist()) == {0, 1, 2}
    small = recoloured(ColourSettings(jitter_probability=1, brightness=0, contrast=0, saturation=0, hue=0.05))
    assert (small[:, 0, 7].argmax(axis=-1) == 0).all()


def test_grey_and_blur_come_as_often_as_told() -> None:
    grey = recoloured(ColourSettings(grey_probability=0.2), 500)
    lost = (np.ptp(grey[:, 0, 7], axis=-1) == 0).sum()
    assert 65 < lost < 140
    blurred = recoloured(ColourSettings(blur_probability=0.5, blur_sigma_px=(1.0, 2.0)), 200)
    changed = (blurred[:, 4, 4, 0] < 195).sum()
    assert 70 < changed < 130
