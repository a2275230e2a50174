"""Mixtures: whole counts near the exact share, each dataset in epochs of its own, alike for every world, resumable."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from small_dataset import small_dataset
from small_run import small_job

from hiclip.batch import Views
from hiclip.data.mixture import MixedDataset, Mixture, fingerprint_of, interleaved, mixture_of
from hiclip.data.order import Order
from hiclip.data.ray_stream import rank_stream
from hiclip.data.step_reader import StepReader, local_stream
from hiclip.data.stream_plan import LoaderSettings, Source, StreamPlan, plan_stream
from hiclip.pretrain import plan, pretrain, stream_plan
from hiclip.training.checkpoint import read_checkpoint
from hiclip.training.history import StepRow
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import RunPlace
from hiclip.training.run_folder import check_datasets, claim, finish
from hiclip.training.this_process import run_here
from pipeline.jobfile import JobError
from pipeline.manifest import DatasetError, Manifest
from pipeline.shards import DatasetReader


def mixture(weights: list[int]) -> Mixture:
    return Mixture(tuple(weight // math.gcd(*weights) for weight in weights))


def farthest(datasets: int) -> Fraction:
    """How far a count of so many datasets may be off its share: half a pair for each of the roundings above it."""
    return Fraction(1, 2) * (1 + sum(Fraction(1, number) for number in range(1, datasets - 1)))


MIXTURES = st.lists(st.integers(1, 10**6), min_size=2, max_size=8).map(mixture)


@settings(max_examples=300, deadline=None)
@given(MIXTURES, st.integers(0, 10**15))
def test_counts_add_up_stay_near_the_share_and_grow_one_by_one(mixed: Mixture, positions: int) -> None:
    here, after = mixed.counts(positions), mixed.counts(positions + 1)
    assert sum(here) == positions
    assert sorted(b - a for a, b in zip(here, after, strict=True)) == [0] * (len(here) - 1) + [1]
    for place, count in enumerate(here):
        away = abs(count - positions * mixed.share(place))
        assert away <= farthest(len(here))
        assert away < 1 or len(here) > 3
    if len(set(mixed.weights)) == len(mixed.weights):
        assert Mixture(mixed.weights[::-1]).counts(positions) == here[::-1], "however they are listed"
    total = sum(mixed.weights)
    assert mixed.counts(positions * total) == tuple(weight * positions for weight in mixed.weights), "whole shares"


def test_farthest_is_what_the_module_says() -> None:
    assert farthest(3) == 1, "which is not reached"
    assert farthest(10) < 2


def test_golden_counts() -> None:
    """Runs under way rely on these numbers; and here rounded cumulative weights would take a pair back."""
    mixed = Mixture((5, 1, 4))
    owners = [np.subtract(mixed.counts(p + 1), mixed.counts(p)).argmax() for p in range(20)]
    assert owners == [0, 2, 0, 2, 0, 1, 0, 2, 0, 2, 0, 2, 0, 2, 0, 1, 0, 2, 0, 2]
    assert mixed.counts(8_192) == (4096, 819, 3277)
    assert Mixture((1,)).counts(7) == (7,)


@pytest.mark.parametrize("weights", [(), (0, 1), (2, 4), (-1, 2)])
def test_impossible_mixtures_are_refused(weights: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 1 and have no common divisor"):
        Mixture(weights)


SOURCES = st.lists(
    st.builds(
        Order,
        pairs=st.integers(1, 400),
        rows_per_group=st.integers(1, 30),
        window_groups=st.integers(1, 10),
        seed=st.integers(0, 2**60),
    ),
    min_size=2,
    max_size=4,
)
BATCHES = st.integers(1, 20).map(lambda number: 4 * number)


def plan_of_orders(orders: list[Order], mixed: Mixture, batch: int) -> StreamPlan:
    return StreamPlan(
        tuple(Source(f"{n}", f"{n}", order, order.pairs) for n, order in enumerate(orders)), mixed, batch, 16, 8
    )


def shown(stream: StreamPlan, step: int, rank: int = 0, world: int = 1) -> list[tuple[int, int, int]]:
    """(source, epoch, row) of every pair of a step, in its order."""
    owners, rows, epochs = stream.pairs_of_rank(step, rank, world)
    return list(zip(owners.tolist(), epochs.tolist(), rows.tolist(), strict=True))


@settings(max_examples=20, deadline=None)
@given(SOURCES, BATCHES, st.data())
def test_every_pair_comes_once_in_each_epoch_of_its_own_dataset(
    orders: list[Order], batch: int, data: st.DataObject
) -> None:
    mixed = mixture(data.draw(st.lists(st.integers(1, 50), min_size=len(orders), max_size=len(orders))))
    stream, steps = plan_of_orders(orders, mixed, batch), 40
    came = [pair for step in range(steps) for pair in shown(stream, step)]
    assert len(came) == len(set(came)) == steps * batch
    for place, (order, count) in enumerate(zip(orders, mixed.counts(steps * batch), strict=True)):
        own = sorted((epoch, row) for source, epoch, row in came if source == place)
        whole = count // order.pairs
        assert own[: whole * order.pairs] == list(itertools.product(range(whole), range(order.pairs)))
        assert {epoch for epoch, _ in own[whole * order.pairs :]} <= {whole}
        assert len(own) == count


@settings(max_examples=8, deadline=None)
@given(SOURCES, BATCHES, st.data())
def test_a_step_asked_for_alone_is_that_of_walking_there(orders: list[Order], batch: int, data: st.DataObject) -> None:
    mixed = mixture(data.draw(st.lists(st.integers(1, 1000), min_size=len(orders), max_size=len(orders))))
    stream, at = plan_of_orders(orders, mixed, batch), [0] * len(orders)
    for step in range(10):
        walked = []
        for position in range(step * batch, (step + 1) * batch):
            place = int(np.subtract(mixed.counts(position + 1), mixed.counts(position)).argmax())
            row = int(orders[place].rows(np.array([at[place]]))[0])
            walked.append((place, at[place] // orders[place].pairs, row))
            at[place] += 1
        assert sorted(shown(stream, step)) == sorted(walked)


@settings(max_examples=30, deadline=None)
@given(SOURCES, BATCHES, st.integers(0, 10**9))
def test_worlds_share_a_step_and_each_rank_has_its_part_of_every_dataset(
    orders: list[Order], batch: int, step: int
) -> None:
    stream = plan_of_orders(orders, mixture([order.pairs for order in orders]), batch)
    whole = shown(stream, step)
    sizes = Counter(source for source, _, _ in whole)
    for world in (1, 2, 4):
        parts = [shown(stream, step, rank, world) for rank in range(world)]
        assert list(itertools.chain.from_iterable(parts)) == whole
        for part in parts:
            mine = Counter(source for source, _, _ in part)
            assert all(abs(mine[source] - size / world) <= len(orders) for source, size in sizes.items())


@settings(max_examples=15, deadline=None)
@given(SOURCES, BATCHES)
def test_weights_in_proportion_to_pairs_show_everything_once_in_one_pass(orders: list[Order], batch: int) -> None:
    pairs = [order.pairs for order in orders]
    stream = plan_of_orders(orders, mixture(pairs), batch)
    assert stream.mixture.counts(sum(pairs)) == tuple(pairs)
    steps = sum(pairs) // batch
    came = {pair for step in range(steps) for pair in shown(stream, step)}
    assert len(came) == steps * batch
    if steps * batch == sum(pairs):
        assert came == {(place, 0, row) for place, count in enumerate(pairs) for row in range(count)}


def test_five_billion_pairs_far_into_a_run() -> None:
    orders = [Order(5_000_000_000, 1024, 256, seed=1), Order(300_000_007, 500, 256, seed=2)]
    stream = plan_of_orders(orders, mixture([order.pairs for order in orders]), 8192)
    came = shown(stream, 10**9)
    assert len(set(came)) == 8192
    assert {(source, epoch) for source, epoch, _ in came} == {(0, 1545), (1, 1545)}


def test_one_dataset_alone_is_in_its_own_order() -> None:
    order = Order(1003, 10, 7, seed=42)
    stream = plan_of_orders([order], Mixture((1,)), 24)
    for step, (rank, world) in itertools.product((0, 41, 1000), ((0, 1), (1, 3))):
        owners, rows, epochs = stream.pairs_of_rank(step, rank, world)
        assert not owners.any()
        assert (rows == order.rows_of_rank(step, 24, rank, world)).all()
        assert (epochs == order.epochs_of_rank(step, 24, rank, world)).all()
    assert stream.window_steps == (3,)


def test_interleaving_keeps_each_datasets_order() -> None:
    owners, numbers = interleaved((4, 0, 2))
    assert owners.tolist() == [0, 2, 0, 0, 2, 0]
    assert numbers.tolist() == [0, 0, 1, 2, 1, 3]


def manifest(pairs: int, fingerprint: str = "") -> Manifest:
    return Manifest(
        name="m", pairs=pairs, pairs_per_shard=8, rows_per_group=8, shards=(), columns={}, fingerprint=fingerprint,
        job={}, snapshot="", funnel=[], versions={},
    )  # fmt: skip


def test_weights_are_taken_as_they_are_written() -> None:
    tenths = [MixedDataset(path="a", weight=0.1), MixedDataset(path="b", weight=0.7)]
    assert mixture_of(tenths, [manifest(5), manifest(9)]).weights == (1, 7)
    none = [MixedDataset(path="a"), MixedDataset(path="b")]
    assert mixture_of(none, [manifest(6), manifest(9)]).weights == (2, 3)


def test_the_fingerprint_is_of_datasets_and_weights_in_their_order() -> None:
    assert fingerprint_of(Mixture((1,)), ["a"]) == "a"
    said = {
        fingerprint_of(mixture(weights), fingerprints)
        for weights in ([1, 2], [2, 1], [2, 4])
        for fingerprints in (["a", "b"], ["b", "a"], ["a", "c"])
    }
    assert len(said) == 6, "[2, 4] is [1, 2]"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One of 40 and one of 24 pairs, with no pair in common."""
    root = tmp_path_factory.mktemp("mixed")
    small_dataset(root / "large", pairs=40, px=32)
    small_dataset(root / "small", pairs=24, px=32, first=100, rows_per_group=4)
    return [str(root / "large"), str(root / "small")]


def ids_of(path: str) -> set[str]:
    reader = DatasetReader(path)
    tables = [reader.read_group(group, ["pair_id"]) for group in range(reader.groups)]
    return {name for table in tables for name in table["pair_id"].to_pylist()}


def mixed_plan(datasets: list[str], weights: tuple[float | None, ...], batch: int = 8, windows: int = 2) -> StreamPlan:
    mixed = [MixedDataset(path=path, weight=weight) for path, weight in zip(datasets, weights, strict=True)]
    return plan_stream(mixed, batch, windows, 7, Views(("crop",), ("caption",)), 16, 12)


def test_a_reader_shows_both_datasets_in_their_epochs_to_every_world(datasets: list[str]) -> None:
    """3 to 1: while the large one is shown twice and some, the small one is shown once and some."""
    stream, (large, small) = mixed_plan(datasets, (3, 1)), map(ids_of, datasets)
    assert not large & small
    steps = list(local_stream(stream, 0, 16))
    names = [name for step in steps for name in step.pair_ids]
    assert [sum(name in large for name in step.pair_ids) for step in steps] == [6] * 16
    of_large, of_small = ([name for name in names if name in ids] for ids in (large, small))
    # A batch crosses a border of epochs, and its pairs are laid out in rows: compare what steps hold in all.
    counts = Counter(of_large)
    assert set(counts) == large
    assert sorted(counts.values()) == [2] * 24 + [3] * 16
    assert Counter(of_small[:24]) == dict.fromkeys(small, 1)
    assert len(set(of_small[24:])) == 8
    for world in (2, 4):
        parts = [list(local_stream(stream, 0, 16, rank, world)) for rank in range(world)]
        for number, step in enumerate(steps):
            assert [name for part in parts for name in part[number].pair_ids] == step.pair_ids
            together = np.concatenate([part[number].images["crop"] for part in parts])
            assert (together == step.images["crop"]).all()
    reader = StepReader(stream)
    for step in (15, 3, 9):
        again = reader.read(step, 0, 1)
        assert again.pair_ids == steps[step].pair_ids
        assert (again.images["crop"] == steps[step].images["crop"]).all()
        assert (again.tokens["caption"] == steps[step].tokens["caption"]).all()


@pytest.mark.usefixtures("ray_session")
def test_ray_makes_the_same_steps(datasets: list[str]) -> None:
    stream = mixed_plan(datasets, (3, 1))
    through_ray = rank_stream(stream, LoaderSettings(tasks=2, cpus_per_task=0.5, steps_per_task=2), 1, 6, 1, 2)
    for here, there in zip(local_stream(stream, 1, 6, 1, 2), through_ray, strict=True):
        assert (here.step, here.pair_ids) == (there.step, there.pair_ids)
        assert (here.images["crop"] == there.images["crop"]).all()
        assert (here.tokens["caption"] == there.tokens["caption"]).all()


def test_without_weights_one_pass_is_everything_and_the_next_again(datasets: list[str]) -> None:
    stream, everything = mixed_plan(datasets, (None, None)), ids_of(datasets[0]) | ids_of(datasets[1])
    for epoch in range(2):
        names = [name for step in local_stream(stream, 8 * epoch, 8 * epoch + 8) for name in step.pair_ids]
        assert Counter(names) == dict.fromkeys(everything, 1)
    crops = {}
    for step in local_stream(stream, 0, 16):
        for name, pixels in zip(step.pair_ids, step.images["crop"], strict=True):
            crops.setdefault(name, []).append(pixels)
    assert sum((first == second).all() for first, second in crops.values()) < len(everything) / 2, "other crops"


def test_two_datasets_are_not_permuted_alike(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        small_dataset(tmp_path / name, pairs=64, px=16, first=100 * number)
    stream = mixed_plan([str(tmp_path / "one"), str(tmp_path / "two")], (1, 1), batch=16)
    one, two = ([row for source, _, row in shown(stream, 0) if source == place] for place in range(2))
    assert one != two


def test_a_reader_keeps_the_groups_of_each_datasets_window_and_no_more(datasets: list[str]) -> None:
    reader = StepReader(mixed_plan(datasets, (3, 1), windows=1))
    kept = []
    for step in range(60):
        reader.read(step, 0, 1)
        kept.append(Counter(source for source, _ in reader._groups))
    assert all(max(counts[source] for counts in kept) <= 4 for source in range(2)), "two windows and their borders"
    assert reader._plan.window_steps == (2, 2)
    assert mixed_plan(datasets, (7, 1), windows=2).window_steps == (3, 8)


def test_a_dataset_that_lacks_a_column_comes_twice_or_changed_is_named(datasets: list[str], tmp_path: Path) -> None:
    small_dataset(tmp_path / "third", pairs=8, px=16, first=300)
    mixed = [MixedDataset(path=path) for path in (*datasets, str(tmp_path / "third"))]
    with pytest.raises(DatasetError, match=rf"^{datasets[0]}: .* need the columns caption_summary; the dataset has"):
        plan_stream(mixed, 8, 5, 0, Views(("crop",), ("summary",)), 16, 12)
    with pytest.raises(DatasetError, match=rf"^{datasets[0]}/: is the same dataset as {datasets[0]}; name it once"):
        mixed_plan([*datasets, f"{datasets[0]}/"], (1, 1, 1))
    stream = mixed_plan([*datasets, str(tmp_path / "third")], (1, 1, 1))
    small_dataset(tmp_path / "third", pairs=9, px=16, first=300)
    with pytest.raises(DatasetError, match=rf"^{tmp_path}/third: .* it was built anew"):
        StepReader(stream)


def mixed_job(out: Path, datasets: list[str], **changes: Any) -> PretrainJob:
    said = [{"path": datasets[0], "weight": 3}, {"path": datasets[1], "weight": 1}]
    return small_job(str(out), **{"data": {"dataset": said}, **changes})


def train(job: PretrainJob, steps: int | None = None) -> list[tuple[int, float]]:
    """Trains in this process from the newest checkpoint on; the losses."""
    rows: list[StepRow] = []
    stream = stream_plan(job)
    run_here(job, RunPlace(job.out, stream.fingerprint, None, steps), stream, rows.append)
    return [(row.seen, row.loss) for row in rows]


def test_a_run_on_a_mixture_stops_goes_on_and_ends_as_the_undisturbed(datasets: list[str], tmp_path: Path) -> None:
    job = mixed_job(tmp_path / "run", datasets)
    undisturbed = train(mixed_job(tmp_path / "undisturbed", datasets))
    assert train(job, steps=3) + train(job) == undisturbed
    assert len(undisturbed) == 8
    weights, others = (read_checkpoint(str(tmp_path / name)).weights() for name in ("run", "undisturbed"))
    assert all((weights[name] == others[name]).all() for name in others)
    alone = train(small_job(str(tmp_path / "alone"), datasets[0]))
    assert alone[0] != undisturbed[0], "it does see other pairs"


def test_a_finished_or_begun_run_names_the_dataset_that_changed(
    datasets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [datasets[0], str(tmp_path / "other")]
    small_dataset(paths[1], pairs=24, px=32, first=100)
    job = mixed_job(tmp_path / "run", paths)
    claim(job)
    check_datasets(job, stream_plan(job))
    train(job)
    finish(job, None)
    assert pretrain(job).seen == 64, "finished: nothing is started"
    stored = json.loads((tmp_path / "run" / "result.json").read_text())["manifest_fingerprint"]
    assert stored == stream_plan(job).fingerprint
    small_dataset(paths[1], pairs=20, px=32, first=100)
    for name in ("result.json", None):
        with pytest.raises(
            DatasetError, match=rf"^{paths[1]}: the run in {job.out} was begun with dataset [0-9a-f]+, "
        ):
            pretrain(job)
        if name:
            (tmp_path / "run" / name).unlink()


def test_a_dataset_may_change_before_the_first_checkpoint(datasets: list[str], tmp_path: Path) -> None:
    paths = [datasets[0], str(tmp_path / "other")]
    job = mixed_job(tmp_path / "run", paths)
    for pairs in (24, 20):
        small_dataset(paths[1], pairs=pairs, px=32, first=100)
        claim(job)
        check_datasets(job, stream_plan(job))
    assert json.loads((tmp_path / "run" / "datasets.json").read_text()) == [
        source.fingerprint for source in stream_plan(job).sources
    ]


def test_the_bill_has_a_line_for_each_dataset(datasets: list[str], tmp_path: Path) -> None:
    def printed(job: PretrainJob) -> str:
        console = Console(width=250, file=io.StringIO())
        with console.capture() as capture:
            console.print(plan(job))
        return capture.get()

    said = printed(mixed_job(tmp_path / "run", datasets))
    assert f"{datasets[0]}: 40 pairs, " in said
    assert f"{datasets[1]}: 24 pairs, " in said
    assert "75.00%, 6.0 pairs, 1.20 epochs" in said
    assert "25.00%, 2.0 pairs, 0.67 epochs" in said
    said = printed(mixed_job(tmp_path / "run", [datasets[0], "runs/nowhere"]))
    assert f"{datasets[0]}: 40 pairs, " in said
    assert "runs/nowhere: not built yet" in said


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (3, "data.dataset: expected a folder, an s3:// address or a list of datasets, came 3"),
        ({"path": "a"}, "data.dataset: expected a folder, an s3:// address or a list of datasets"),
        ("", "data.dataset: expected at least 1 letters, came ''"),
        ([], "data.dataset: expected a list of two datasets or more, came 0"),
        ([{"path": "a"}], "data.dataset: expected a list of two datasets or more, came 1"),
        (["a", {"path": "b"}], "data.dataset.0: expected keys and values, came 'a'"),
        ([{"path": "a"}, {"weight": 1}], "data.dataset.1.path: missing; expected a value"),
        ([{"path": "a", "wieght": 1}, {"path": "b"}], "data.dataset.0.wieght: no such key; did you mean 'weight'?"),
        ([{"path": "a"}, {"path": "b", "weight": 0}], "data.dataset.1.weight: expected more than 0, came 0"),
        ([{"path": "a"}, {"path": "b", "weight": math.inf}], "data.dataset.1.weight: expected a finite number, came"),
        ([{"path": "a"}, {"path": "b", "weight": "x"}], "data.dataset.1.weight: expected a number, came 'x'"),
        (
            [{"path": "a"}, {"path": "b", "weight": 1}],
            "data.dataset: expected a weight for each dataset or for none, came 1 for 2",
        ),
    ],
)
def test_mistakes_are_named(said: object, message: str) -> None:
    with pytest.raises(JobError) as caught:
        small_job("out", data={"dataset": said})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "more mistake" not in str(caught.value)


def test_one_dataset_is_written_and_named_as_before() -> None:
    """A stored run and a study's rungs are found by this fingerprint."""
    job = small_job("out")
    assert job.model_dump(mode="json")["data"]["dataset"] == "nowhere"
    mixed = mixed_job(Path("out"), ["a", "b"])
    assert mixed.fingerprint != job.fingerprint
    assert mixed.model_dump(mode="json")["data"]["dataset"][0] == {"path": "a", "weight": 3.0}
    assert PretrainJob.model_validate(mixed.model_dump(mode="json")) == mixed


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mixed = mixed_job(tmp_path, ["a", "s3://bucket/b"]).data.absolute_dataset
    assert not isinstance(mixed, str)
    assert [one.path for one in mixed] == [str(tmp_path / "a"), "s3://bucket/b"]
    assert [one.weight for one in mixed] == [3, 1]
    assert small_job("out", "a").data.absolute_dataset == str(tmp_path / "a")
