"""The export of a checkpoint: the card's own lines load it without our pipeline, and give the same features."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loopback_s3 import bucket
from safetensors.torch import load_file, save_file
from small_checkpoint import SMALL_MODEL, small_checkpoint
from small_dataset import small_dataset
from small_evaluation import small_evaluation, small_set

from hiclip.evaluation.export_checkpoint import export_checkpoint
from hiclip.export import main
from hiclip.model.exported import load
from hiclip.model.sizes import ModelSettings
from hiclip.training.checkpoint import load_towers
from pipeline.manifest import MANIFEST
from pipeline.storage import folder

ROOT = Path(__file__).parent.parent.parent
_BLOCKED = ["ray", "deepspeed", "mlflow", "pydantic", "pyarrow", "yaml", "rich", "s3fs", "transformers"]


def _run(*argv: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(argv)
    return int(end.value.code or 0)


def _evaluated(place: Path, checkpoint: Path) -> Path:
    """An evaluation of the checkpoint's weights."""
    small_evaluation(place, [small_set("cifar10")], 1.0)
    content = json.loads((place / "result.json").read_text())
    content["weights"] = folder(str(checkpoint / "weights.safetensors")).sha256()
    (place / "result.json").write_text(json.dumps(content))
    return place


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    manifest = small_dataset(root / "build", pairs=64)
    content = json.loads((root / "build" / MANIFEST).read_text())
    content["job"]["card"] = {"licences": {"drawings": "CC0"}}
    (root / "build" / MANIFEST).write_text(json.dumps(content))
    return small_checkpoint(root / "run", str(root / "build"), manifest.fingerprint)


def test_the_lines_of_the_card_load_the_model_without_the_pipeline(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process where Ray, DeepSpeed, MLflow and pydantic cannot be imported; the features are equal to the bit."""
    out, result = tmp_path / "out", _evaluated(tmp_path / "evaluation", checkpoint)
    assert _run(str(checkpoint.parent.parent), str(out), "--result", str(result)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"result: {out / 'README.md'}"
    card = (out / "README.md").read_text()
    lines = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(lines) == 1
    assert len(lines[0].splitlines()) == 3

    pictures, tokens = torch.randn(3, 3, 32, 32), torch.tensor([[49_406, 320, 1125, 49_407] + [0] * 12] * 2)
    save_file({"pictures": pictures, "tokens": tokens}, tmp_path / "asked.safetensors")
    code = (
        "import sys\n"
        f"for name in {_BLOCKED}: sys.modules[name] = None\n"
        f"{lines[0]}"
        "from safetensors.torch import load_file, save_file\n"
        f"asked = load_file({str(tmp_path / 'asked.safetensors')!r})\n"
        "with torch.inference_mode():\n"
        "    answers = {'image': towers.image_tower(asked['pictures']).vector,\n"
        "               'text': towers.text_tower(asked['tokens']).vector, 'scale': towers.logit_scale()}\n"
        f"save_file(answers, {str(tmp_path / 'answers.safetensors')!r})\n"
    )
    path = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=out, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = load_file(tmp_path / "answers.safetensors")
    towers, _ = load_towers(str(checkpoint))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        assert torch.equal(answers["image"], towers.image_tower(pictures).vector)
        assert torch.equal(answers["text"], towers.text_tower(tokens).vector)
        assert torch.equal(answers["scale"], towers.logit_scale())
    torch.set_num_threads(threads)


def test_the_card_says_what_the_model_is(checkpoint: Path, tmp_path: Path) -> None:
    place = export_checkpoint(str(checkpoint), str(tmp_path / "out"), str(_evaluated(tmp_path / "e", checkpoint)))
    card = place.read_text("README.md")
    for words in (
        "# small\n",
        "HiCLIP (tiny): vision transformer with 2 layers of 64, patches of 8 px",
        "- pairs seen: 640 in 10 steps",
        "- objective: not stated",
        "small (`",
        "64 pairs, fingerprint `",
        "licence of the data: drawings: CC0",
        "### cifar10",
        "1 of 11 sets",
        "`width: 64`",
    ):
        assert words in card
    assert re.search(r"\| top-1 \| [\d.]+ % \| [\d.]+ to [\d.]+ \|", card)
    note = place.read_text("TOKENIZER.md")
    assert "16 numbers" in note
    assert "49407" in note
    config = json.loads(place.read_text("config.json"))
    assert config["picture"]["px"] == 32
    assert set(place.names()) == {"weights.safetensors", "config.json", "README.md", "TOKENIZER.md"}
    assert not any(name.startswith(("towers.", "objective.")) for name in load_file(place.join("weights.safetensors")))


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    small = small_checkpoint(tmp_path / "run", str(tmp_path / "gone"), "f" * 64)
    card = export_checkpoint(str(small), str(tmp_path / "out")).read_text("README.md")
    assert "not within reach at export" in card
    assert "licence of the data: unknown" in card
    assert "None are given." in card
    assert "f" * 64 in card


@pytest.mark.parametrize(
    "settings",
    [
        replace(SMALL_MODEL, hierarchy_layers=(1,), affinity_width=8, text_pooling="max", causal=False),
        replace(SMALL_MODEL, image_hierarchy=False, text_hierarchy=False, leff=True, front_layers=1, region_width=12),
        ModelSettings(size="resnet_tiny", image_hierarchy=False, text_width=64, text_depth=1, embedding=32),
    ],
    ids=["layers", "pyramid", "resnet"],
)
def test_every_kind_of_model_comes_back_the_same(settings: ModelSettings, tmp_path: Path) -> None:
    small = small_checkpoint(tmp_path / "run", "gone", "0" * 64, settings)
    out = export_checkpoint(str(small), str(tmp_path / "out"))
    exported, (towers, _) = load(out.root), load_towers(str(small))
    assert exported.settings == towers.settings == settings
    assert not exported.training
    own, other = exported.state_dict(), towers.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_the_export_may_lie_on_s3(checkpoint: Path) -> None:
    with bucket("exports") as address:
        place = export_checkpoint(str(checkpoint), f"{address}/out")
        assert set(place.names()) == {"weights.safetensors", "config.json", "README.md", "TOKENIZER.md"}


def test_mistakes_end_in_one_line_and_write_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("keep")
    small_evaluation(tmp_path / "other", [small_set("cifar10")], 1.0)
    for argv, expected in [
        ([str(checkpoint), str(tmp_path / "full")], "expected an empty or a new folder, found mine.txt"),
        ([str(tmp_path / "nothing"), str(tmp_path / "out")], "no checkpoint is here"),
        ([str(checkpoint), str(tmp_path / "out"), "--result", str(tmp_path)], "finished evaluation"),
        (
            [str(checkpoint), str(tmp_path / "out"), "--result", str(tmp_path / "other")],
            "expected an evaluation of the",
        ),
    ]:
        assert _run(*argv) == 2
        said = capsys.readouterr().err.strip()
        assert expected in said
        assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full/mine.txt").read_text() == "keep"


def test_what_was_tampered_with_is_told_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    place = Path(export_checkpoint(str(checkpoint), str(tmp_path / "out")).root)
    config = json.loads((place / "config.json").read_text())
    weights = load_file(place / "weights.safetensors")

    def fails(match: str) -> None:
        with pytest.raises(ValueError, match=match) as error:
            load(str(place))
        assert len(str(error.value).splitlines()) == 1

    save_file({name: one for name, one in weights.items() if "cls_token" not in name}, place / "weights.safetensors")
    fails(r"missing: image_tower\.cls_token")
    save_file({**weights, "more": torch.zeros(1)}, place / "weights.safetensors")
    fails("unknown: more")
    save_file(weights, place / "weights.safetensors")
    (place / "config.json").write_text(json.dumps({**config, "model": {**config["model"], "embedding": 64}}))
    fails(r"misshapen: image_tower\.projection\.weight \(\(32, 64\), expected \(64, 64\)\)")
    (place / "config.json").write_text(json.dumps({**config, "model": {**config["model"], "size": "huge"}}))
    fails("size: expected one of")
    (place / "config.json").write_text(json.dumps({**config, "model": {**config["model"], "wdith": 1}}))
    fails("differing: wdith")
    for key, value, said in [
        ("text_pooling", "last", r"text_pooling: expected one of end, \w+, came 'last'"),
        ("self_link", None, "self_link: expected one of one, zero, came None"),
        ("causal", 1, "causal: expected bool, came 1"),
        ("affinity_scale", "256", "affinity_scale: expected float, came '256'"),
        ("affinity_width", [64], r"affinity_width: expected one of full or int, came \[64\]"),
        ("hierarchy_layers", ["0"], r"hierarchy_layers: expected one of all or tuple, came \('0',\)"),
        ("vocabulary", True, "vocabulary: expected int, came True"),
        ("initial_temperature", None, "initial_temperature: expected float, came None"),
    ]:
        (place / "config.json").write_text(json.dumps({**config, "model": {**config["model"], key: value}}))
        fails(said)
    (place / "config.json").write_text("{")
    fails("cannot be read")
    (place / "config.json").unlink()
    fails("was not finished")
    (place / "config.json").write_text(json.dumps(config))
    (place / "weights.safetensors").write_bytes(b"not tensors")
    fails("cannot be read")
    (place / "weights.safetensors").unlink()
    fails("cannot be read")
