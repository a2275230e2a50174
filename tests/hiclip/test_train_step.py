"""The benchmark of training steps: what it counts is what its methods do, and it runs where torch alone is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.train_methods import METHODS, THEIRS, Setup, Trainee, random_batch
from benchmarks.train_step import known_peak, measure, table
from hiclip.batch import MASK_TOKEN, NOT_PREDICTED
from hiclip.model.sizes import ModelSettings, resolve
from hiclip.training.cost import forward_flops_per_pair

ROOT = Path(__file__).parent.parent.parent
SETUP = Setup("tiny", pairs=2, bf16=False, compiled=False, device="cpu")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_from_a_step(name: str) -> None:
    trainee, method = Trainee(name, SETUP), METHODS[name]
    towers = trainee.module.towers
    before = {key: parameter.detach().clone() for key, parameter in towers.named_parameters()}
    trainee.step()
    moved = {key for key, parameter in towers.named_parameters() if not torch.equal(parameter, before[key])}
    assert ("image_tower.patch_embedding.weight" in moved) == (method.objective.name == "clip")
    for tower, hierarchy in (("image_tower", method.image_hierarchy), ("text_tower", method.text_hierarchy)):
        assert (f"{tower}.transformer.layers.0.hierarchy.projection.query.weight" in moved) == hierarchy
        assert f"{tower}.transformer.layers.0.attention.query.weight" in moved


@pytest.mark.parametrize("name", ["clip", "hiclip", "hiclip_text", "hiclip_narrow"])
def test_flops_are_those_of_the_closed_form(name: str) -> None:
    expected = forward_flops_per_pair(METHODS[name].model("tiny"), all_tokens=False)
    assert Trainee(name, SETUP).flops_per_pair == pytest.approx(expected, rel=0.02)


def test_rows_say_what_was_timed() -> None:
    clip, hiclip = measure(SETUP, ["clip", "hiclip"], rounds=3, steps=1, peak_tflops=0.5)
    assert (clip.method, clip.size, clip.batch, clip.precision, clip.rounds) == ("clip", "tiny", 2, "fp32", 3)
    assert clip.ms_low <= clip.ms <= clip.ms_high
    assert clip.pairs_per_s == pytest.approx(2 / clip.ms * 1e3, rel=0.01)
    assert clip.over_clip == clip.flops_over_clip == 1.0
    assert hiclip.flops_over_clip is not None
    assert 1.1 < hiclip.flops_over_clip < 1.3
    assert hiclip.tflops_per_s == pytest.approx(hiclip.train_gflops_per_pair * hiclip.pairs_per_s / 1e3, abs=1e-3)
    assert hiclip.mfu == pytest.approx(hiclip.tflops_per_s / 0.5, abs=2e-3)
    assert hiclip.peak_mib is None, "nobody counts the memory of a CPU's step"
    assert len({len(line) for line in table([clip, hiclip]).splitlines()}) == 1, "columns stand below their heads"


def test_peaks_are_found_by_the_beginning_of_the_name() -> None:
    assert known_peak("NVIDIA A100-SXM4-80GB", "bf16") == 312
    assert known_peak("NVIDIA H100 PCIe", "bf16") == 756
    assert known_peak("some processor", "fp32") is None


def test_masked_captions_hide_what_is_to_be_guessed() -> None:
    method = METHODS["declip"]
    sizes = resolve(method.model("tiny"))
    tokens = random_batch(method.objective.views, sizes, 8).tokens
    hidden = tokens["masked_targets"] != NOT_PREDICTED
    assert torch.equal(hidden, tokens["masked"] == MASK_TOKEN)
    assert 0.05 < hidden.float().mean() < 0.25
    assert not hidden[:, [0, -1]].any(), "start and end stay"


def test_resident_memory_is_weights_moments_and_batch() -> None:
    trainee = Trainee("clip", SETUP)
    numbers = sum(parameter.numel() for parameter in trainee.module.parameters())
    assert trainee.resident_bytes() == 4 * 3 * numbers + 4 * 2 * 3 * 64**2 + 8 * 2 * 32


def test_transformers_stands_in_the_place_of_our_towers() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (extra `dev`)")
    theirs = Trainee(THEIRS, SETUP)
    plain = ModelSettings(image_hierarchy=False, text_hierarchy=False)
    # It computes all tokens of its last layers, which ours does not.
    assert theirs.flops_per_pair == pytest.approx(forward_flops_per_pair(plain, all_tokens=True), rel=0.02)
    ours = sum(parameter.numel() for parameter in Trainee("clip", SETUP).module.parameters())
    assert sum(parameter.numel() for parameter in theirs.module.parameters()) == ours
    before = [parameter.detach().clone() for parameter in theirs.module.parameters()]
    theirs.step()
    after = list(theirs.module.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > 0.8 * len(after)


def test_it_runs_with_torch_alone(tmp_path: Path) -> None:
    """As on a machine where nothing else of ours is installed."""
    absent = ["ray", "pydantic", "pyarrow", "mlflow", "deepspeed", "yaml", "rich", "s3fs", "fsspec", "simplejpeg"]
    words = ["x", "--size", "tiny", "--batch", "2", "--rounds", "1", "--device", "cpu", "--commit", "abc"]
    words += ["--methods", "clip", "hideclip", "--json", str(tmp_path / "rows.jsonl")]
    code = f"""
import runpy, sys
for name in {absent}: sys.modules[name] = None
sys.argv = {words}
runpy.run_module("benchmarks.train_step", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "hideclip" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["clip", "hideclip"]
    assert {row["commit"] for row in rows} == {"abc"}
    assert all(row["torch"] == torch.__version__ and row["threads"] >= 1 and row["device"] for row in rows)
