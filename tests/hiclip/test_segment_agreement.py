"""Groups beside segments: scikit-learn's adjusted Rand index, coverings by hand, masks on the grid, end to end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import adjusted_rand_score
from small_checkpoint import small_checkpoint
from small_drawings import drawing, encoded

from hiclip.data.images import eval_transform
from hiclip.evaluation.asked import ask
from hiclip.evaluation.blocks import map_here
from hiclip.evaluation.evaluate_job import EvaluateJob, MaskSettings
from hiclip.evaluation.run_evaluation import evaluate
from hiclip.evaluation.segment_agreement import adjusted_rand, blocks_like, covering, read_outlines, segments_on_grid
from pipeline.jobfile import make_job
from pipeline.manifest import DatasetError
from pipeline.storage import folder


def test_the_rand_index_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    for groups, segments in ((2, 2), (5, 3), (30, 4), (1, 3), (64, 2)):
        one, other = random.integers(0, groups, (8, 8)), random.integers(0, segments, (8, 8))
        assert adjusted_rand(one, other) == pytest.approx(adjusted_rand_score(other.ravel(), one.ravel()))
        void = other.copy()
        void[:3] = -1
        assert adjusted_rand(one, void) == pytest.approx(adjusted_rand_score(other[3:].ravel(), one[3:].ravel()))
    same = random.integers(0, 4, (8, 8))
    assert adjusted_rand(same, 7 - same) == 1.0


def test_a_covering_by_hand() -> None:
    segments = np.array([[0, 0, 0, 1]])
    assert covering(np.array([[0, 0, 0, 1]]), segments) == 1.0
    # One group: 3 of 4 for the large segment, 1 of 4 for the small one.
    assert covering(np.zeros((1, 4), dtype=np.int64), segments) == pytest.approx(0.75 * 3 / 4 + 0.25 * 1 / 4)
    # Halves: the large segment is best covered by two of its three places.
    assert covering(np.array([[0, 0, 1, 1]]), segments) == pytest.approx(0.75 * 2 / 3 + 0.25 * 1 / 2)
    assert covering(np.array([[0, 0, 1, 1]]), np.array([[0, 0, -1, 1]])) == 1.0, "void does not count"


def test_a_mask_is_cropped_as_its_picture_is() -> None:
    # Left half 3, right half 7, in a wide picture; a frame of 9 that the centre crop leaves out.
    mask = np.full((40, 80), 9)
    mask[3:-3, 20:40], mask[3:-3, 40:60] = 3, 7
    found = segments_on_grid(mask, 4, 0.85, 255)
    assert found.tolist() == [[3, 3, 7, 7]] * 4
    assert segments_on_grid(mask, 4, 0.85, 3).tolist() == [[-1, -1, 7, 7]] * 4
    colours = {3: (200, 10, 10), 7: (10, 10, 200), 9: (0, 255, 0)}
    picture = Image.fromarray(np.array([[colours[value] for value in row] for row in mask.tolist()], dtype=np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    pixels = eval_transform(buffer.getvalue(), 16, 0.85)
    assert (pixels[:, :7, 0] > 150).all(), "where the mask says 3 the picture is red"
    assert (pixels[:, 9:, 2] > 150).all()


def test_blocks_are_regular_and_about_as_many() -> None:
    for count in (1, 2, 4, 6, 9, 64):
        groups = np.minimum(np.arange(64).reshape(8, 8), count - 1)
        blocks = blocks_like(groups)
        assert abs(len(np.unique(blocks)) - count) <= max(1, count // 4)
    assert blocks_like(np.arange(4).reshape(2, 2)).tolist() == [[0, 1], [2, 3]]


def _lying(picture: Image.Image) -> bytes:
    """A JPEG that lies on its side and says so, as cameras write them."""
    said, file = Image.Exif(), io.BytesIO()
    said[0x0112] = 6
    picture.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", exif=said)
    return file.getvalue()


def _write(place: Path) -> None:
    (place / "pictures").mkdir(parents=True)
    (place / "masks").mkdir()
    for number in range(5):
        picture = drawing(number).resize((40, 24))
        (place / f"pictures/{number}.png").write_bytes(_lying(picture) if number == 2 else encoded(picture))
        mask = np.zeros(picture.size[::-1], dtype=np.uint8)
        mask[:, : mask.shape[1] // 2] = 1
        if number == 4:
            mask[:] = 1  # nothing to tell apart
        Image.fromarray(mask).save(place / f"masks/{number}.png")


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_the_command_beside_blocks_and_an_untrained_model(tmp_path: Path) -> None:
    _write(tmp_path)
    small_checkpoint(tmp_path / "run", "nowhere", "0" * 64)
    content: dict[str, Any] = {
        "name": "segments", "out": str(tmp_path / "out"), "checkpoint": str(tmp_path / "run"), "draws": 100, "batch": 2,
        "baselines": {"pixel_neighbours": None},
        "hierarchy": {"training_pairs": 0, "set_pictures": 0,
                      "masks": {"pictures": str(tmp_path / "pictures"), "masks": str(tmp_path / "masks")}},
    }  # fmt: skip
    job = make_job(content, EvaluateJob, "test")
    outcome = evaluate(ask(job), map_here, folder(job.out).make())
    found = {one.metric: one for one in outcome.results}
    assert list(found) == ["group_ari", "segment_covering"]
    assert all(set(one.baselines) == {"untrained", "blocks"} and one.count == 4 for one in found.values())
    assert found["group_ari"].chance == 0.0
    assert "4 pictures, 1 more left out" in (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "out/hierarchy/segments.png").read_bytes().startswith(b"\x89PNG")

    # What was remembered is not taken for other masks of the same names, nor where another number is void.
    for number in range(5):
        (tmp_path / "plain").mkdir(exist_ok=True)
        Image.new("L", (40, 24), 7).save(tmp_path / f"plain/{number}.png")
    for change in ({"void": 1}, {"masks": str(tmp_path / "plain")}):
        masks = {**content["hierarchy"]["masks"], **change}
        other = make_job({**content, "hierarchy": {**content["hierarchy"], "masks": masks}}, EvaluateJob, "test")
        with pytest.raises(DatasetError, match="expected masks of two segments or more"):
            evaluate(ask(other), map_here, folder(job.out))
        same = ask(other).hierarchy_questions == ask(job).hierarchy_questions
        assert same == ("void" not in change), "pictures and masks are known by name"
    for number in range(5):
        (tmp_path / f"masks/{number}.png").write_bytes((tmp_path / f"plain/{number}.png").read_bytes())
    with pytest.raises(DatasetError, match="expected masks of two segments or more"):
        evaluate(ask(job), map_here, folder(job.out))


def test_masks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    _write(tmp_path)
    settings = MaskSettings(pictures=str(tmp_path / "pictures"), masks=str(tmp_path / "masks"))
    assert len(read_outlines(settings)) == 5
    (tmp_path / "pictures/3.png").unlink()
    with pytest.raises(DatasetError, match=r"masks/3.png: expected a picture 3.jpg in .*, came none"):
        read_outlines(settings)
    with pytest.raises(DatasetError, match=r"expected masks NAME\.png, came none"):
        read_outlines(MaskSettings(pictures=str(tmp_path / "pictures"), masks=str(tmp_path / "empty")))
    from hiclip.evaluation.segment_agreement import _read_mask

    with pytest.raises(DatasetError, match=r"masks/0.png: expected the size of p.jpg, 3 x 4 px, came"):
        _read_mask(folder(str(tmp_path / "masks")), "0.png", (3, 4), "p.jpg")
    whole = (tmp_path / "masks/1.png").read_bytes()
    place = whole.index(b"IDAT") - 4  # its length: what Pillow takes for the next chunk is none
    for damaged in (b"no picture", whole[: len(whole) // 2], whole[:place] + b"\0\0\0\1" + whole[place + 4 :]):
        (tmp_path / "masks/0.png").write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"masks/0.png: expected a PNG"):
            _read_mask(folder(str(tmp_path / "masks")), "0.png", (3, 4), "p.jpg")
