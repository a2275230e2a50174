"""Trunks: a rung that branches off is, bit for bit, the rung that was trained from its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from small_dataset import small_dataset
from small_run import small_job

from hiclip.pretrain import pretrain
from hiclip.scaling.ladder import Ladder, Rung, read_ladder
from hiclip.scaling.scale_job import ScaleJob
from hiclip.scaling.trunk import run_folder, take_over
from hiclip.training.checkpoint import checkpoints, read_checkpoint
from hiclip.training.pretrain_job import PretrainJob
from pipeline.jobfile import JobError, make_job, resolved_yaml
from pipeline.storage import Folder


def study(folder: Path, **changes: Any) -> ScaleJob:
    base = folder / "pretrain.yaml"
    base.write_text(resolved_yaml(small_job("nowhere", str(folder / "build"))))
    content: dict[str, Any] = {
        "name": "trunks",
        "out": str(folder / "study"),
        "base": {"job": str(base)},
        "ladder": {"axes": {"model.width": [64], "schedule.pairs": [32, 64, 128]}, "cooldown_share": 0.25},
        "held_out": {"model.width": 64, "schedule.pairs": 256},
        "error": {"set": {"name": "openmoji", "root": "nowhere"}, "metric": "typical_rank"},
    }
    return make_job(content | changes, ScaleJob, "study")


def placed(place: Folder, ladder: Ladder, rung: Rung) -> PretrainJob:
    stays = rung.job.checkpoints.model_copy(update={"at": ladder.branches(rung), "keep": 1, "keep_best": 0})
    mlflow = rung.job.mlflow.model_copy(update={"registered_model": False})
    out = place.join(run_folder(rung))
    return rung.job.model_copy(update={"out": out, "checkpoints": stays, "mlflow": mlflow})


def test_the_plan_of_a_trunk(tmp_path: Path) -> None:
    ladder = read_ladder(study(tmp_path))
    short, middle, long, held_out = ladder.all
    assert [rung.branch for rung in ladder.all] == [24, 48, 96, 192], "a quarter of the pairs cools down"
    assert {rung.job.schedule.kind for rung in ladder.all} == {"constant"}
    assert [rung.job.schedule.cooldown_pairs for rung in ladder.all] == [8, 16, 32, 64]
    assert len({rung.trunk for rung in ladder.all}) == 1
    assert ladder.waves == ((long,), (short, middle))
    assert [ladder.start(rung) for rung in ladder.all] == [24, 48, 0, 96]
    assert ladder.branches(long) == (24, 48, 96)
    assert ladder.branches(short) == (24,)
    # The longest, and of the others what is their own: 8 + 16 + 128 + (256 - 96) pairs.
    assert ladder.compute == pytest.approx(short.compute / 32 * 312)
    assert held_out.compute == pytest.approx(short.compute * 8), "the law is of the compute of the whole run"


def test_no_trunk_without_a_share_and_none_over_other_keys(tmp_path: Path) -> None:
    axes = {"model.width": [64, 128], "schedule.pairs": [32, 64]}
    ladder = read_ladder(study(tmp_path, ladder={"axes": axes, "cooldown_share": 0.25}))
    assert len({rung.trunk for rung in ladder.rungs}) == 2
    plain = read_ladder(study(tmp_path, ladder={"axes": {"model.width": [64], "schedule.pairs": [32, 64, 128]}}))
    assert {rung.trunk for rung in plain.all} == {None}
    assert plain.waves == (plain.rungs,)
    assert {plain.start(rung) for rung in plain.all} == {0}
    assert {rung.job.schedule.kind for rung in plain.all} == {"cosine"}


def test_a_schedule_said_twice_is_refused(tmp_path: Path) -> None:
    rungs = [{"schedule.pairs": pairs, "schedule.kind": "constant"} for pairs in (32, 64, 128)]
    with pytest.raises(JobError, match=r"ladder rung 1: schedule.kind: ladder.cooldown_share makes this key"):
        read_ladder(study(tmp_path, ladder={"rungs": rungs, "cooldown_share": 0.25}))


@pytest.mark.filterwarnings("ignore:The ``noload``")  # MLflow 3.17 with SQLAlchemy 2.1
def test_a_branch_is_the_run_from_its_start(ray_session: None, tmp_path: Path) -> None:
    small_dataset(tmp_path / "build", pairs=64)
    ladder = read_ladder(study(tmp_path))
    short, middle, long, held_out = ladder.all
    place, apart = Folder(str(tmp_path / "study")).make(), Folder(str(tmp_path / "apart")).make()
    taken = {}
    for rung in (long, short, middle, held_out):
        job = placed(place, ladder, rung)
        taken[rung.name] = take_over(place, ladder, rung, job)
        assert take_over(place, ladder, rung, job) == taken[rung.name], "a second start is told the same"
        run = pretrain(job, here=True)
        assert run.seen == rung.job.pairs
        assert run.job_fingerprint == rung.job.fingerprint
        assert run.train_flops == rung.compute
    assert taken == {long.name: 0, short.name: 24, middle.name: 48, held_out.name: 96}
    for rung in (short, held_out):
        other = pretrain(placed(apart, ladder, rung), here=True)
        for name in ("weights.safetensors", "optimizer.safetensors"):
            alone = load_file(f"{other.checkpoint}/{name}")
            branch = load_file(f"{place.join(run_folder(rung))}/checkpoints/seen-{rung.job.pairs:012d}/{name}")
            assert alone.keys() == branch.keys()
            assert all(alone[key].equal(branch[key]) for key in alone), f"{rung.name}: {name}"
    # What others may start from stays, however few checkpoints are kept.
    assert set(checkpoints(place.join(run_folder(long)))) == {24, 48, 96, 128}
    state = read_checkpoint(place.join(run_folder(short))).state
    assert (state.step, state.seen) == (4, 32)


def test_a_torn_trunk_is_no_trunk(tmp_path: Path) -> None:
    ladder = read_ladder(study(tmp_path))
    place = Folder(str(tmp_path / "study")).make()
    short, _, long, _ = ladder.all
    torn = place.child(f"{run_folder(long)}/checkpoints/seen-{24:012d}").make()
    torn.write_text("state.json", "{}")
    assert take_over(place, ladder, short, placed(place, ladder, short)) == 0
    assert not place.exists(f"{run_folder(short)}.start.json")
