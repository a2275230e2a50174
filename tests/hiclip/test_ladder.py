"""The rungs of a study and its bill, and every study that is refused before anything is run."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_run import small_job

from hiclip.model.sizes import resolve
from hiclip.scaling.ladder import _name, read_ladder
from hiclip.scaling.ray_sweep import trial_resources
from hiclip.scaling.scale_job import ScaleJob
from hiclip.scaling.study_bill import bill, check_budget
from hiclip.scaling.transfer import Best
from hiclip.training.cost import train_flops
from hiclip.training.counted_flops import formula_error
from pipeline.jobfile import InputError, JobError, make_job, read_job, resolved_yaml

PRICE = {"device": "H100", "peak_tflops": 1e-6, "utilization": 0.5, "per_hour": 3.0}
AXES = {"axes": {"model.width": [64, 128], "schedule.pairs": [64, 128]}}


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    """A study of four rungs over the small job."""
    base = folder / "pretrain.yaml"
    base.write_text(resolved_yaml(small_job("nowhere")))
    return {
        "name": "small-scale",
        "out": str(folder / "out"),
        "base": {"job": str(base)},
        "ladder": AXES,
        "held_out": {"model.width": 128, "schedule.pairs": 256},
        "error": {"set": {"name": "openmoji", "root": "nowhere"}, "metric": "typical_rank"},
        **changes,
    }


def study(folder: Path, **changes: Any) -> ScaleJob:
    return make_job(content(folder, **changes), ScaleJob, "study")


def test_every_combination_of_the_axes_is_a_rung(tmp_path: Path) -> None:
    ladder = read_ladder(study(tmp_path))
    assert [rung.name for rung in ladder.rungs] == [
        "width 64, pairs 64",
        "width 64, pairs 128",
        "width 128, pairs 64",
        "width 128, pairs 128",
    ]
    assert [(rung.job.model.width, rung.job.pairs) for rung in ladder.rungs] == [
        (64, 64),
        (64, 128),
        (128, 64),
        (128, 128),
    ]
    assert [rung.group for rung in ladder.rungs] == ["width 64", "width 64", "width 128", "width 128"]
    assert ladder.held_out is not None
    for rung in ladder.all:
        assert rung.compute == train_flops(rung.job.model, rung.job.pairs)
    assert ladder.compute == pytest.approx(sum(train_flops(rung.job.model, rung.job.pairs) for rung in ladder.all))
    assert len({rung.id for rung in ladder.all}) == 5


def test_a_list_of_rungs_means_the_same_runs_as_the_axes(tmp_path: Path) -> None:
    rungs = [{"model.width": width, "schedule.pairs": pairs} for width in (64, 128) for pairs in (64, 128)]
    listed = read_ladder(study(tmp_path, ladder={"rungs": rungs}))
    assert [rung.id for rung in listed.rungs] == [rung.id for rung in read_ladder(study(tmp_path)).rungs]


def test_overrides_change_every_rung_and_give_way_to_the_rung_s_own(tmp_path: Path) -> None:
    base = content(tmp_path)["base"] | {"overrides": {"optimizer.learning_rate": 5e-4, "model.width": 192}}
    ladder = read_ladder(study(tmp_path, base=base))
    assert {rung.job.optimizer.learning_rate for rung in ladder.all} == {5e-4}
    assert {rung.job.model.width for rung in ladder.all} == {64, 128}


def test_the_bill_names_every_rung_and_adds_up(tmp_path: Path) -> None:
    base = content(tmp_path)["base"] | {"overrides": {"price": PRICE}}
    job = study(tmp_path, base=base)
    ladder = read_ladder(job)
    text = io.StringIO()
    Console(file=text, width=200).print(bill(job, ladder))
    lines = text.getvalue().splitlines()
    assert all(any(rung.name in line for line in lines) for rung in ladder.all)
    assert any("(held out)" in line for line in lines)
    hours = ladder.compute / 5e5 / 3600
    assert ladder.device_hours == pytest.approx(hours)
    total = next(line for line in lines if "the study" in line)
    assert "640" in total
    assert f"{ladder.compute:.3g}" in total
    assert f"{hours * 3:,.2f} USD" in total


def test_a_trial_holds_what_trains_in_it(tmp_path: Path) -> None:
    here = read_ladder(study(tmp_path)).rungs[0]
    assert trial_resources(here) == {"CPU": 0.5}
    base = content(tmp_path)["base"] | {"overrides": {"engine": {"name": "deepspeed"}, "workers.gpus": 1}}
    with_workers = read_ladder(study(tmp_path, base=base)).rungs[0]
    assert trial_resources(with_workers)["CPU"] < 0.1, "its workers ask for their own"
    assert "GPU" not in trial_resources(with_workers)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"base": {"job": "none.yaml"}}, "base.job: none.yaml: expected a job file, found no such file"),
    ({"ladder": {}}, "ladder: expected either axes or rungs, came neither"),
    ({"ladder": AXES | {"rungs": [{}]}}, "ladder: expected either axes or rungs, came both"),
    ({"ladder": {"axes": {"model.width": []}}}, "ladder.axes.model.width"),
    ({"ladder": {"axes": {"model.widht": [64, 128]}}}, "ladder rung 1: .* did you mean 'width'"),
    ({"ladder": {"axes": {"model.width": [64, 100]}}}, "ladder rung 2: .*multiple of 64"),
    ({"ladder": {"axes": {"schedule.pairs": [64, 128]}}}, "power needs at least 3 rungs, came 2"),
    ({"ladder": {"axes": {"schedule.pairs": [64, 72, 80]}}}, "spans a factor 1.25"),
    ({"form": "power_with_floor"}, "power_with_floor needs at least 5 rungs, came 4"),
    (
        {"ladder": {"rungs": [{"schedule.pairs": 64}, {"schedule.pairs": 65}, {"schedule.pairs": 128}]}},
        "'pairs 64' and 'pairs 65' have equal compute",  # whole batches count, not pairs asked for
    ),
    ({"ladder": {"rungs": [{}, {"model.depth": 1}, {"model.depth": 2}]}}, "are the same run"),
    (
        {"ladder": {"axes": {"optimizer.learning_rate": [1e-3, 2e-3], "schedule.pairs": [64, 128]}}},
        "'learning rate 0.001, pairs 64' and 'learning rate 0.002, pairs 64' have equal compute",
    ),
    ({"held_out": {"model.width": 128, "schedule.pairs": 128}}, "held_out: expected more compute than every rung"),
    ({"budget_flops": 1e6}, "budget_flops: the study needs .* its smallest rung needs"),
    ({"budget_hours": 1}, "budget_hours: .* has no price"),
    ({"error": {"set": {"name": "openmoji", "root": "x"}, "metric": "typical_rnak"}}, "did you mean 'typical_rank'"),
    ({"error": {"set": {"name": "openmoji", "root": "x"}, "metric": "rsum"}}, "rsum is in points and has no error"),
    ({"bootstrap": {"draws": 10}}, "bootstrap.draws"),
    ({"methods": {"../x": {}}}, "methods"),
    ({"methods": {"one": {}, "two": {}}}, "methods: one and two train the same run for 'width 64, pairs 64'"),
    (
        {"methods": {"one": {"model.width": 64}, "two": {}}},
        "ladder rung 3 of one: model.width: is 128 here and 64 in methods.one; say it in one place",
    ),
    (
        {"selection": "bins", "bins": 5, "ladder": {"axes": {"schedule.pairs": [80, 88, 96, 104, 8000]}}},
        "power needs at least 3 rungs, came 2",  # bins that are filled
    ),
    ({"concurent": 2}, "concurent: no such key; did you mean 'concurrent'"),
]


def test_bins_are_counted_that_are_filled(tmp_path: Path) -> None:
    """Though the three smallest rungs alone span no more than a fifth."""
    axes = {"axes": {"schedule.pairs": [80, 88, 96, 800, 8000]}}
    assert len(read_ladder(study(tmp_path, selection="bins", bins=3, ladder=axes, held_out=None)).rungs) == 5


def test_sections_are_changed_key_by_key(tmp_path: Path) -> None:
    """A method written as a mapping is no other model: what it does not say stays as the base has it."""
    plain = {"model": {"image_hierarchy": False, "text_hierarchy": False}}
    ladder = read_ladder(study(tmp_path, methods={"hiclip": {}, "clip": plain}))
    hiclip, clip = (ladder.of(method)[0].job.model for method in ("hiclip", "clip"))
    assert (hiclip.image_hierarchy, clip.image_hierarchy) == (True, False)
    assert replace(clip, image_hierarchy=True, text_hierarchy=True) == hiclip
    with pytest.raises(JobError, match=r"held_out: expected each key once, came schedule\.pairs twice"):
        study(tmp_path, held_out={"schedule.pairs": 512, "schedule": {"pairs": 1024}})
    base = content(tmp_path)["base"] | {"overrides": {"model.width": 256, "workers": {"count": 1, "cpus": 0.25}}}
    assert {rung.job.model.width for rung in read_ladder(study(tmp_path, base=base)).rungs} == {64, 128}


def test_other_seeds_of_a_rung_show_its_noise(tmp_path: Path) -> None:
    axes = {"axes": {"seed": [0, 1], "schedule.pairs": [64, 128, 256]}}
    ladder = read_ladder(study(tmp_path, ladder=axes, held_out=None))
    assert len(ladder.rungs) == 6
    assert len({rung.id for rung in ladder.rungs}) == 6
    assert len({rung.group for rung in ladder.rungs}) == 1


def test_keys_that_end_alike_are_said_whole(tmp_path: Path) -> None:
    changes = {"schedule.pairs": 512, "optimizer.beta1": 0.8, "schedule.warmup_pairs": 8}
    named = {**changes, "data.views.flip_probability": 0.1, "data.views.augmented.flip_probability": 0.2}
    assert _name(changes) == "pairs 512, beta1 0.8, warmup pairs 8"
    assert _name(named).endswith("data.views.flip probability 0.1, data.views.augmented.flip probability 0.2")


def test_what_a_search_found_gives_way_to_methods_and_makes_no_rung_twice(tmp_path: Path) -> None:
    rungs = [{"schedule.pairs": pairs} for pairs in (64, 128, 256)]
    rungs.append({"schedule.pairs": 256, "optimizer.learning_rate": 0.002})
    job = study(
        tmp_path,
        selection="frontier",
        held_out=None,
        ladder={"rungs": rungs},
        methods={"hiclip": {}, "clip": {"model.image_hierarchy": False, "optimizer.learning_rate": 5e-4}},
        search={"learning_rate": [1e-4, 1e-2], "trials": 2, "rung": {"schedule.pairs": 64}},
    )
    with pytest.raises(JobError, match=r"is 0\.002 here and 0\.0005 in methods\.clip"):
        read_ladder(job)  # the job's own contradiction
    job = job.model_copy(update={"methods": {"hiclip": {}}})
    width = resolve(read_ladder(job).rungs[0].job.model).image.width
    ladder = read_ladder(job, {"hiclip": Best(0.002, None, width)})
    assert [rung.job.optimizer.learning_rate for rung in ladder.rungs] == [0.002] * 3
    clip = {"clip": {"model.image_hierarchy": False, "optimizer.learning_rate": 5e-4}}
    job = job.model_copy(update={"methods": clip, "ladder": job.ladder.model_copy(update={"rungs": rungs[:3]})})
    ladder = read_ladder(job, {"clip": Best(0.002, None, width)})
    assert {rung.job.optimizer.learning_rate for rung in ladder.rungs} == {5e-4}


@pytest.mark.parametrize(("changes", "words"), REFUSALS)
def test_a_study_that_cannot_work_is_refused_before_it_starts(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    def read() -> None:
        job = study(tmp_path, **changes)
        check_budget(job, read_ladder(job))

    with pytest.raises(InputError, match=words):
        read()


def test_more_device_hours_than_the_budget_are_refused(tmp_path: Path) -> None:
    base = content(tmp_path)["base"] | {"overrides": {"price": PRICE}}
    needed = read_ladder(study(tmp_path, base=base)).device_hours
    assert needed is not None
    job = study(tmp_path, base=base, budget_hours=needed * 1.01)
    assert check_budget(job, read_ladder(job)).device_hours == needed * 1.01
    for key, share in (("budget_hours", 1.0), ("budget_money", PRICE["per_hour"])):
        job = study(tmp_path, base=base, **{key: needed * 0.99 * share})
        with pytest.raises(InputError, match=rf"{key}: the study needs .* device-hours.* its smallest rung needs"):
            check_budget(job, read_ladder(job))
    with pytest.raises(InputError, match=r"budget_money: .* has no price"):
        check_budget(study(tmp_path, budget_money=1e9), read_ladder(study(tmp_path)))


@pytest.mark.parametrize("file", ["jobs/walk/scale.yaml", "jobs/walk/scale_long.yaml", "jobs/scale_study.yaml"])
def test_torch_counts_what_the_formula_says_of_every_rung(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    models = {rung.job.model for rung in read_ladder(read_job(file, [], ScaleJob)).all}
    assert len(models) >= 4
    assert max(abs(formula_error(model)) for model in models) < 0.02
