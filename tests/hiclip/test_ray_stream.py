"""The stream: what one process reads and what Ray's tasks make are the same bytes, in the same order, for any world."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import logging
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from hiclip.batch import NOT_PREDICTED, Views
from hiclip.data.image_views import IMAGE_VIEWS
from hiclip.data.region_views import REGION_VIEWS
from hiclip.data.step_reader import RankStep, StepReader, local_stream
from hiclip.data.stream_plan import LoaderSettings, StreamPlan, plan_stream
from hiclip.data.text_views import TEXT_VIEWS
from hiclip.data.tokenizer import Tokenizer
from hiclip.data.view_settings import ViewSettings
from pipeline.manifest import DatasetError, Manifest, dataset_fingerprint, write_manifest
from pipeline.pair import PAIR_SCHEMA, pair_id
from pipeline.shards import DatasetReader, write_shards
from pipeline.storage import folder

PAIRS, GROUP = 150, 8
BROKEN = (17, 18, 149)
LOADER = LoaderSettings(tasks=2, cpus_per_task=0.5, steps_per_task=3)


ANNOTATIONS = (
    pa.field("caption_summary", pa.string()),
    pa.field("object_tags", pa.string()),
    pa.field("regions", pa.binary()),
)


def annotations(row: int) -> tuple[str | None, str | None, bytes | None]:
    """Every fourth pair has none; the others have row % 4 regions of three numbers that tell the row."""
    if row % 4 == 0:
        return None, None, None
    return f"summary {row}", f"tag {row}, tag", np.full((row % 4, 3), row, dtype=np.float16).tobytes()


def write_dataset(path: Path, pairs: int = PAIRS, broken: tuple[int, ...] = BROKEN, annotated: bool = False) -> str:
    """A real dataset: pictures whose colour tells their row, as JPEG and PNG by turns, some of them cut short."""
    target = folder(str(path))
    target.make()
    random = np.random.default_rng(0)
    rows = []
    for row in range(pairs):
        height, width = random.integers(20, 90, 2)
        pixels = random.integers(0, 40, (height, width, 3)) + np.array([row, 200 - row, 100])
        encoded = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(encoded, "JPEG" if row % 2 else "PNG")
        data = encoded.getvalue()[:100] if row in broken else encoded.getvalue()
        url, text = f"http://a.crawl.example/{row}", f"picture number {row}"
        digest = hashlib.sha256(data).hexdigest()
        row_of_pair = (pair_id(url, text), url, text, "test", data, int(width), int(height), digest)
        rows.append(row_of_pair + (annotations(row) if annotated else ()))
    schema = pa.schema([*PAIR_SCHEMA, *ANNOTATIONS]) if annotated else PAIR_SCHEMA
    columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)]
    shards = tuple(write_shards([pa.Table.from_arrays(columns, schema=schema)], target, 64, GROUP))
    types = {field.name: str(field.type) for field in schema}
    fingerprint = dataset_fingerprint(shards, types)
    manifest = Manifest(
        name="test", pairs=pairs, pairs_per_shard=64, rows_per_group=GROUP, shards=shards, columns=types,
        fingerprint=fingerprint, job={}, snapshot="", funnel=[], versions={},
    )  # fmt: skip
    write_manifest(target, manifest)
    return str(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def test_pairs_of_the_next_shard_stand_in_for_those_of_a_damaged_one(dataset: str) -> None:
    plan = plan_of(dataset)
    (source,) = plan.sources
    lacking = dataclasses.replace(plan, sources=(dataclasses.replace(source, unsound=frozenset([0])),))
    groups = [DatasetReader(dataset).read_group(group, ["pair_id"]) for group in range(64 // GROUP)]
    of_shard = {name for group in groups for name in group["pair_id"].to_pylist()}
    stood_in = 0
    for step in range(PAIRS // 24):
        whole, without = StepReader(plan).read(step, 0, 1), StepReader(lacking).read(step, 0, 1)
        for ours, theirs in zip(without.pair_ids, whole.pair_ids, strict=True):
            stood_in += ours != theirs
        assert not of_shard & set(without.pair_ids)
        assert without.broken >= whole.broken
        assert same(without, StepReader(lacking).read(step, 0, 1))
    assert stood_in > 0
    nothing = dataclasses.replace(source, unsound=frozenset(range(9)))
    with pytest.raises(DatasetError, match=r"none of its . shards is sound"):
        nothing.sound_row(0)


@pytest.fixture(scope="module")
def annotated_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("annotated"), annotated=True)


def plan_of_everything(dataset: str) -> StreamPlan:
    """All views that there are, two regions at most."""
    views = Views(tuple(IMAGE_VIEWS), tuple(TEXT_VIEWS), tuple(REGION_VIEWS))
    return plan_stream(dataset, 24, 5, 7, views, 16, 12, ViewSettings(most_regions=2), region_width=3)


def plan_of(dataset: str, batch: int = 24) -> StreamPlan:
    return plan_stream(dataset, batch, 5, 7, Views(("crop",), ("caption",)), image_px=16, context=12)


def same(left: RankStep, right: RankStep) -> bool:
    return (
        (left.step, left.pair_ids, left.broken) == (right.step, right.pair_ids, right.broken)
        and all((left.images[view] == right.images[view]).all() for view in left.images)
        and all((left.tokens[view] == right.tokens[view]).all() for view in left.tokens)
        and all((left.regions[view] == right.regions[view]).all() for view in left.regions)
        and (set(left.images), set(left.tokens), set(left.regions))
        == (set(right.images), set(right.tokens), set(right.regions))
    )


def test_every_pair_comes_once_an_epoch_and_broken_ones_are_replaced(dataset: str) -> None:
    """150 pairs in batches of 25: six steps an epoch."""
    ids = [pair_id(f"http://a.crawl.example/{row}", f"picture number {row}") for row in range(PAIRS)]
    expected = sorted([ids[row] for row in range(PAIRS) if row not in BROKEN] + [ids[19], ids[19], ids[0]])
    for first in (0, 6):
        steps = list(local_stream(plan_of(dataset, 25), first, first + 6))
        assert sorted(name for step in steps for name in step.pair_ids) == expected
        assert (
            sum(step.broken for step in steps) == 4
        )  # row 17 passes over 18 as well, and so does 18 itself: 2 + 1 + 1


def test_worlds_share_a_step_in_equal_slices(dataset: str) -> None:
    plan = plan_of(dataset)
    whole = list(local_stream(plan, 5, 9))
    for world in (2, 4, 8):
        parts = [list(local_stream(plan, 5, 9, rank, world)) for rank in range(world)]
        for number, step in enumerate(whole):
            assert [name for part in parts for name in part[number].pair_ids] == step.pair_ids
            together = np.concatenate([part[number].images["crop"] for part in parts])
            assert (together == step.images["crop"]).all()
            assert sum(part[number].broken for part in parts) == step.broken


def test_pictures_and_captions_belong_together(dataset: str) -> None:
    plan = plan_of(dataset)
    step = StepReader(plan).read(3, 0, 1)
    for pixels, tokens in zip(step.images["crop"], step.tokens["caption"], strict=True):
        row = int(Tokenizer(12).decode(tokens).split()[-1])
        assert abs(pixels[..., 0].mean() - row - 20) < 8


def test_every_view_is_made_of_its_own_pair(annotated_dataset: str) -> None:
    step = StepReader(plan_of_everything(annotated_dataset)).read(3, 0, 1)
    tokenizer = Tokenizer(12)
    assert set(step.tokens) == set(TEXT_VIEWS)
    assert not (step.images["view_1"] == step.images["view_2"]).all()
    for place in range(24):
        row = int(tokenizer.decode(step.tokens["caption"][place]).split()[-1])
        annotated = row % 4 > 0
        summary, tags = (tokenizer.decode(step.tokens[view][place]) for view in ("summary", "tags"))
        assert summary == (f"summary {row}" if annotated else f"picture number {row}")
        assert tags == (f"tag {row}, tag" if annotated else "")
        shown = [[row] * 3 if number < row % 4 else [0] * 3 for number in range(2)]
        assert step.regions["regions"][place].tolist() == shown
        chosen = step.tokens["masked_targets"][place] != NOT_PREDICTED
        assert (step.tokens["masked_targets"][place][chosen] == step.tokens["caption"][place][chosen]).all()
        assert (step.tokens["masked"][place][~chosen] == step.tokens["caption"][place][~chosen]).all()
    batch = step.to_batch()
    assert batch.regions["regions"].dtype == torch.float32
    assert batch.regions["regions"].shape == (24, 2, 3)
    assert batch.tokens["masked"].shape == (24, 8)
    assert batch.tokens["masked_targets"].shape == (24, 12)


def test_regions_of_another_width_are_refused(annotated_dataset: str) -> None:
    plan = dataclasses.replace(plan_of_everything(annotated_dataset), region_width=4)
    with pytest.raises(DatasetError, match=r"regions of 4 float16 each \(model\.region_width\), came \d+ bytes"):
        next(local_stream(plan, 0, 1))
    with pytest.raises(ValueError, match="region_width: expected a number with the views regions"):
        dataclasses.replace(plan, region_width=None)


def test_a_step_takes_as_many_bytes_as_it_says(annotated_dataset: str) -> None:
    plan = plan_of_everything(annotated_dataset)
    step = StepReader(plan).read(0, 0, 1)
    arrays = [*step.images.values(), *step.tokens.values(), *step.regions.values()]
    assert plan.step_bytes(1) == sum(array.nbytes for array in arrays)


def test_resuming_is_asking_for_a_later_step(dataset: str) -> None:
    plan = plan_of(dataset)
    undisturbed = list(local_stream(plan, 0, 14))
    assert all(same(a, b) for a, b in zip(local_stream(plan, 9, 14), undisturbed[9:], strict=True))


def test_an_epoch_shows_other_crops_and_another_order(dataset: str) -> None:
    plan = plan_of(dataset, 150)
    first, second = local_stream(plan, 0, 2)
    assert first.pair_ids == second.pair_ids  # the whole dataset is one batch, and rows ascend within it
    # Very long pictures show their centre in every epoch, by torchvision's rule.
    assert (first.images["crop"] == second.images["crop"]).all(axis=(1, 2, 3)).mean() < 0.3
    assert (first.tokens["caption"] == second.tokens["caption"]).all()
    halves = [step.pair_ids for step in local_stream(plan_of(dataset, 75), 0, 4)]
    assert halves[0] != halves[2]


def test_a_batch_holds_normalised_tensors(dataset: str) -> None:
    step = next(local_stream(plan_of(dataset), 0, 1))
    step.images["crop"].flags.writeable = False  # as Ray hands it out
    batch = step.to_batch()
    assert batch.images["crop"].shape == (24, 3, 16, 16)
    assert batch.images["crop"].dtype == torch.float32
    assert batch.tokens["caption"].shape == (24, 8)  # of 12: these captions end before, and their padding is cut
    assert (batch.tokens["caption"].numpy() == step.tokens["caption"][:, :8]).all()
    assert (step.tokens["caption"][:, 8:] == 0).all()
    assert batch.tokens["caption"].dtype == torch.int64
    assert len(batch) == 24
    red = (step.images["crop"][5, 3, 4, 0] / 255 - 0.48145466) / 0.26862954
    assert float(batch.images["crop"][5, 0, 3, 4]) == pytest.approx(red, abs=1e-5)


def test_fewer_unique_pairs_are_the_first_of_the_dataset_over_and_over(dataset: str) -> None:
    """And those of fewer are among those of more, whatever the order that they come in."""
    shown = {}
    for unique in (25, 50, None):
        plan = plan_stream(dataset, 25, 5, 7, Views(("crop",), ("caption",)), 16, 12, unique_pairs=unique)
        rows = np.concatenate([plan.pairs_of_rank(step, 0, 1)[1] for step in range(6)])
        shown[unique] = sorted(rows.tolist())
    assert shown[25] == sorted(list(range(25)) * 6)
    assert shown[50] == sorted(list(range(50)) * 3)
    assert shown[None] == list(range(PAIRS))
    with pytest.raises(DatasetError, match=r"expected at least 151 pairs \(data.unique_pairs\), has 150"):
        plan_stream(dataset, 25, 5, 7, Views(("crop",), ("caption",)), 16, 12, unique_pairs=151)


def test_a_reader_keeps_the_groups_of_a_window_and_no_more(dataset: str) -> None:
    reader = StepReader(plan_of(dataset, 10))
    kept = []
    for step in range(30):
        reader.read(step, 0, 1)
        kept.append(len(reader._groups))
    assert 5 <= max(kept) <= 2 * 5 + 1  # two windows of five groups and the group of a stand-in


def test_batches_that_do_not_divide_are_refused(dataset: str) -> None:
    with pytest.raises(ValueError, match="24 pairs has no equal slice for rank 0 of 5"):
        next(local_stream(plan_of(dataset), 0, 1, 0, 5))


def test_a_view_that_nobody_knows_or_the_dataset_lacks(dataset: str) -> None:
    with pytest.raises(ValueError, match="no view 'rotated'; there are crop"):
        plan_stream(dataset, 8, 5, 0, Views(("rotated",), ("caption",)), 16, 12)
    says = r"views crop, summary, which need the columns caption_summary; the dataset has pair_.* an annotation in the"
    with pytest.raises(DatasetError, match=says):
        plan_stream(dataset, 8, 5, 0, Views(("crop",), ("summary",)), 16, 12)


def test_a_dataset_that_was_rebuilt_is_refused(tmp_path: Path) -> None:
    plan = plan_of(write_dataset(tmp_path / "one", 20, ()))
    write_dataset(tmp_path / "one", 21, ())
    with pytest.raises(DatasetError, match="built anew"):
        StepReader(plan)


def test_a_dataset_without_one_whole_picture_ends_in_an_error(tmp_path: Path) -> None:
    plan = plan_of(write_dataset(tmp_path, 3, (0, 1, 2)), 2)
    with pytest.raises(DatasetError, match="not one of 3 pictures"):
        next(local_stream(plan, 0, 1))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tasks": 0}, "tasks: expected 1 or more, came 0"),
        ({"steps_per_task": 0}, "steps_per_task: expected 1 or more, came 0"),
        ({"cpus_per_task": -1}, "cpus_per_task: expected 0 or more, came -1"),
        ({"stall_timeout_s": 0}, "stall_timeout_s: expected more than 0, came 0"),
        ({"task": 1}, "task"),
    ],
)
def test_loader_settings_that_cannot_be(wrong: dict[str, float], says: str) -> None:
    adapter = TypeAdapter(LoaderSettings)
    assert adapter.validate_python({"tasks": 3, "steps_per_task": None}).tasks == 3
    with pytest.raises(ValidationError, match=says):
        adapter.validate_python(wrong)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("rank", "world", "first"), [(0, 1, 0), (1, 2, 5)])
def test_ray_makes_the_same_bytes(dataset: str, rank: int, world: int, first: int) -> None:
    from hiclip.data.ray_stream import rank_stream

    plan = plan_of(dataset)
    made = list(rank_stream(plan, LOADER, first, 20, rank, world))
    read = list(local_stream(plan, first, 20, rank, world))
    assert len(made) == 20 - first
    assert all(same(a, b) for a, b in zip(made, read, strict=True))
    assert made[0].to_batch().tokens["caption"].shape == (24 // world, 8)


@pytest.mark.usefixtures("ray_session")
def test_ray_makes_the_same_bytes_of_every_view(annotated_dataset: str) -> None:
    from hiclip.data.ray_stream import rank_stream

    plan = plan_of_everything(annotated_dataset)
    made = list(rank_stream(plan, LOADER, 2, 6, 1, 2))
    assert all(same(a, b) for a, b in zip(made, local_stream(plan, 2, 6, 1, 2), strict=True))
    assert set(made[0].regions) == {"regions"}


@pytest.mark.usefixtures("ray_session")
def test_two_ranks_read_beside_each_other_and_say_nothing(dataset: str, capfd: pytest.CaptureFixture[str]) -> None:
    from hiclip.data.ray_stream import rank_stream

    plan = plan_of(dataset)
    whole = list(local_stream(plan, 0, 8))
    ranks = [rank_stream(plan, LOADER, 0, 8, rank, 2) for rank in range(2)]
    for step, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert parts[0].pair_ids + parts[1].pair_ids == step.pair_ids
    written = capfd.readouterr()
    assert written.out == ""
    assert "dataset" not in written.err.lower()


@pytest.mark.usefixtures("ray_session")
def test_closing_ends_the_execution_and_its_tasks(dataset: str) -> None:
    import ray

    from hiclip.data.ray_stream import rank_stream

    def executions() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("StreamingExecutor")]

    with contextlib.closing(rank_stream(plan_of(dataset), LOADER, 0, 100_000)) as stream:
        assert [step.step for step in itertools.islice(stream, 3)] == [0, 1, 2]
        assert len(executions()) == 1
    assert executions() == []
    deadline = time.monotonic() + 90
    while ray.available_resources().get("CPU") != 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 4


@pytest.mark.usefixtures("ray_session")
def test_a_loader_that_gets_no_cpu_says_so_and_fails(dataset: str, caplog: pytest.LogCaptureFixture) -> None:
    from hiclip.data.ray_stream import LoaderError, rank_stream

    starved = LoaderSettings(cpus_per_task=1000, late_after_s=0.5, stall_timeout_s=3)
    with (
        caplog.at_level(logging.WARNING, "hiclip"),
        pytest.raises(LoaderError, match=r"nothing was read for 3 s.*1000"),
    ):
        next(rank_stream(plan_of(dataset), starved, 0, 2))
    assert "no batch after 0.5 s" in caplog.text
    assert "4 CPUs" in caplog.text


@pytest.mark.usefixtures("ray_session")
def test_a_dataset_that_went_away_ends_the_stream_with_its_error(tmp_path: Path) -> None:
    from hiclip.data.ray_stream import rank_stream

    plan = plan_of(write_dataset(tmp_path, 20, ()))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DatasetError, match="no dataset here"):
        next(rank_stream(plan, LOADER, 0, 2))


@pytest.mark.usefixtures("ray_session")
def test_no_steps_are_no_stream(dataset: str) -> None:
    from hiclip.data.ray_stream import rank_stream

    assert list(rank_stream(plan_of(dataset), LOADER, 5, 5)) == []


@pytest.mark.usefixtures("ray_session")
def test_a_killed_task_is_made_again_and_nothing_changes(dataset: str) -> None:
    from hiclip.data.ray_stream import rank_stream

    def reading() -> list[psutil.Process]:
        children = psutil.Process().children(recursive=True)
        return [child for child in children if child.cmdline()[:1] == ["ray::ReadSteps"]]

    # Pictures large enough that the tasks cannot run ahead to the end before one of them is killed.
    plan = dataclasses.replace(plan_of(dataset), image_px=128)
    loader = LoaderSettings(tasks=2, cpus_per_task=0.5, steps_per_task=4, prefetched_steps=1)
    killed: list[int] = []
    with contextlib.closing(rank_stream(plan, loader, 0, 30)) as stream:
        for made, read in zip(stream, local_stream(plan, 0, 30), strict=True):
            assert same(made, read)
            if not killed and (victims := reading()):
                victims[0].kill()
                killed.append(victims[0].pid)
    assert len(killed) == 1
