"""A linear probe: scikit-learn's numbers on the same features, the optimum by another way, the search, resuming."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score
from small_checkpoint import small_checkpoint
from small_dataset import small_dataset

from hiclip.evaluation import linear_probe
from hiclip.evaluation.asked import ask
from hiclip.evaluation.blocks import map_here
from hiclip.evaluation.embed import Embedder, picture_features
from hiclip.evaluation.evaluate_job import EvaluateJob, LinearProbeSettings
from hiclip.evaluation.evaluation_bill import bill
from hiclip.evaluation.linear_probe import Examples, _best, _fit, _held_out, _search, probe
from hiclip.evaluation.measure import MeasuredSet
from hiclip.evaluation.run_evaluation import evaluate
from hiclip.evaluation.set_pictures import StoredPictures, TarPictures
from hiclip.training.checkpoint import load_towers
from pipeline.jobfile import make_job
from pipeline.manifest import DatasetError
from pipeline.storage import folder

CLASSES = ("disc", "square", "cross", "ring", "bar", "corner")


def shape(label: int, number: int) -> bytes:
    """One of six shapes, at a place and in colours that depend on the number."""
    chance = np.random.default_rng([label, number])
    image = Image.new("RGB", (48, 48), tuple(chance.integers(150, 256, 3).tolist()))
    draw, colour = ImageDraw.Draw(image), tuple(chance.integers(0, 110, 3).tolist())
    x, y = chance.integers(4, 16, 2).tolist()
    box = (x, y, x + 26, y + 26)
    if label == 0:
        draw.ellipse(box, fill=colour)
    elif label == 1:
        draw.rectangle(box, fill=colour)
    elif label == 2:
        draw.line(box, fill=colour, width=6)
        draw.line((x, y + 26, x + 26, y), fill=colour, width=6)
    elif label == 3:
        draw.ellipse(box, outline=colour, width=4)
    elif label == 4:
        draw.rectangle((x, y + 9, x + 26, y + 16), fill=colour)
    else:
        draw.polygon([(x, y), (x + 26, y), (x, y + 26)], fill=colour)
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def write_tars(root: Path, train: int, test: int) -> None:
    """CLIP_benchmark's layout, `train` and `test` pictures of each shape; the last test picture is broken."""
    for split, each, first in (("train", train, 0), ("test", test, 1000)):
        place = root / split
        place.mkdir(parents=True)
        (place / "nshards.txt").write_text("1")
        with tarfile.open(place / "0.tar", "w") as tar:
            for number in range(each):
                for label in range(len(CLASSES)):
                    last = split == "test" and (number, label) == (each - 1, len(CLASSES) - 1)
                    content = b"broken" if last else shape(label, first + number)
                    for end, data in ((".png", content), (".cls", str(label).encode())):
                        member = tarfile.TarInfo(f"{number:03d}-{label}{end}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    (root / "classnames.txt").write_text("\n".join(CLASSES))
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("probe")
    write_tars(root / "shapes", train=20, test=12)
    manifest = small_dataset(root / "build", pairs=8)
    small_checkpoint(root / "run", str(root / "build"), manifest.fingerprint)
    return root


def job_of(place: Path, out: str, **probe: Any) -> EvaluateJob:
    sets = [{"name": "webdataset", "called": "shapes", "root": str(place / "shapes")}]
    content = {
        "name": "probe", "out": out, "checkpoint": str(place / "run"), "linear_probe": {"sets": sets, **probe},
        "baselines": {"pixel_neighbours": None}, "hierarchy": None, "batch": 16, "draws": 100,
    }  # fmt: skip
    return make_job(content, EvaluateJob, "test")


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_the_numbers_are_scikit_learns(place: Path, tmp_path: Path) -> None:
    job = job_of(place, str(tmp_path / "out"))
    assert bill(ask(job), 1).row_count > 4, "a job of probes alone can be billed"
    outcome = evaluate(ask(job), map_here, folder(job.out).make())
    found = {one.metric: one for one in outcome.results}
    assert set(found) == {"top1", "top5", "mean_per_class"}
    (stored,) = (tmp_path / "out/sets/linear_probe").iterdir()
    measured = MeasuredSet.model_validate_json(stored.read_text())
    assert measured.probe is not None
    assert measured.probe.converged
    assert (measured.seen and measured.seen.broken, measured.seen and measured.seen.count) == (1, 72)

    embedder = Embedder(load_towers(str(place / "run"))[0])
    train = [(shape(label, number), label) for number in range(20) for label in range(6)]
    test = [(shape(label, 1000 + number), label) for number in range(12) for label in range(6)]
    features = [
        np.concatenate([picture_features(embedder, [image for image, _ in part[at : at + 16]])
                        for at in range(0, len(part), 16)])
        for part in (train, test)
    ]  # fmt: skip
    labels = [np.array([label for _, label in part]) for part in (train, test)]
    model = LogisticRegression(C=measured.probe.strength, max_iter=1000).fit(features[0], labels[0])
    logits = model.decision_function(features[1])
    logits[-1] = -1e9 * np.eye(6)[labels[1][-1]]  # the broken picture counts as wrong
    answers = logits.argmax(axis=1)
    assert found["top1"].value == pytest.approx(accuracy_score(labels[1], answers))
    assert found["mean_per_class"].value == pytest.approx(balanced_accuracy_score(labels[1], answers))
    assert found["top5"].value == pytest.approx(top_k_accuracy_score(labels[1], logits, k=5))
    assert found["top1"].value > 0.5 > found["top1"].baselines["majority"], "shapes can be read off even untrained"
    assert found["top1"].chance == pytest.approx(1 / 6)

    # The second time nothing is computed again, and the page shows the probe.
    (tmp_path / "out/result.json").unlink()
    before = stored.stat().st_mtime_ns
    assert evaluate(ask(job), map_here, folder(job.out)).results == outcome.results
    assert stored.stat().st_mtime_ns == before
    assert "linear_probe/shapes" in (tmp_path / "out/report.html").read_text()
    other = ask(job_of(place, str(tmp_path / "out"), features="embedding"))
    assert other.probe_key(other.probed[0]) != ask(job).probe_key(ask(job).probed[0])


def test_a_fit_is_the_optimum_of_the_regularised_likelihood() -> None:
    chance = np.random.default_rng(0)
    for classes in (2, 3):
        labels = chance.integers(0, classes, 90)
        features = (chance.normal(size=(90, 5)) + np.eye(5)[labels] * 1.5).astype(np.float32)
        fitted = _fit(Examples(features, labels), 0.7)
        weights = torch.tensor(fitted.weights, requires_grad=True)
        biases = torch.tensor(fitted.biases, requires_grad=True)
        logits = torch.tensor(features, dtype=torch.float64) @ weights.T + biases
        likelihood = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="sum")
        # Of two classes scikit-learn penalises the one plane that it keeps: twice each of ours.
        penalty = (
            (weights**2).sum() / 2 if classes > 2 else (2 * weights[1]) ** 2 @ torch.ones(5, dtype=torch.float64) / 2
        )
        (likelihood + penalty / 0.7).backward()
        assert biases.grad is not None
        assert biases.grad.abs().max() < 0.05
        if classes > 2:
            assert weights.grad is not None
            assert weights.grad.abs().max() < 0.05, "of some hundred at zero"


def test_the_search_comes_close_to_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def right(shared: Any, strength: float) -> float:
        asked.append(float(np.log10(strength)))
        return float(-abs(np.log10(strength) - 1.3))

    monkeypatch.setattr(linear_probe, "_tried", right)
    nothing = Examples(np.empty((0, 1), dtype=np.float32), np.empty(0, dtype=np.int64))
    tried = _search(nothing, nothing, map_here, "")
    assert asked[:7] == pytest.approx([-6, -4, -2, 0, 2, 4, 6])
    assert abs(np.log10(_best(tried)) - 1.3) <= 1 / 8
    assert len(asked) <= 7 + 2 * 4
    assert _best({10.0: 0.5, 1.0: 0.5, 0.1: 0.4}) == 1.0, "of equal ones the smallest"


def test_each_class_holds_out_its_share_by_name() -> None:
    labels = np.array([0] * 10 + [1] * 2 + [2])
    names = [f"{number}.png" for number in range(13)]
    apart = _held_out(names, labels, 0.2)
    assert [int(apart[labels == label].sum()) for label in range(3)] == [2, 1, 0]
    turned = _held_out(names[::-1], labels[::-1], 0.2)
    assert {name for name, out in zip(names, apart, strict=True) if out} == {
        name for name, out in zip(names[::-1], turned, strict=True) if out
    }


def test_mistakes_are_said(place: Path, tmp_path: Path) -> None:
    write_tars(tmp_path / "shapes", train=1, test=1)
    (tmp_path / "shapes/train/0.tar").unlink()
    with tarfile.open(tmp_path / "shapes/train/0.tar", "w") as tar:
        for end, data in ((".png", shape(0, 0)), (".cls", b"0")):
            member = tarfile.TarInfo(f"0{end}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    job = job_of(place, str(tmp_path / "out"))
    changed = json.loads(job.model_dump_json())
    changed["linear_probe"]["sets"][0]["root"] = str(tmp_path / "shapes")
    with pytest.raises(DatasetError, match="'square' has no picture there"):
        ask(make_job(changed, EvaluateJob, "test"))
    changed["linear_probe"]["sets"][0]["root"] = str(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"linear_probe/shapes: .*nowhere is not there"):
        ask(make_job(changed, EvaluateJob, "test"))


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ((), "two classes or more, came 0 of 0"),
        ((0, 6, 12), "two classes or more, came 3 of 1"),
        ((0, 1, 2), "two readable training pictures of a class, came one of each"),
    ],
)
def test_too_few_readable_training_pictures_are_said(
    shown: tuple[int, ...], said: str, place: Path, tmp_path: Path
) -> None:
    splits = ask(job_of(place, str(tmp_path / "out"))).probed[0]
    pictures = splits[0].pictures
    encoded = [data if row in shown else b"broken" for row, data in enumerate(pictures.read(range(len(pictures))))]
    broken = replace(splits[0], pictures=StoredPictures(tuple(pictures.names()), tuple(encoded)))
    embedder = Embedder(load_towers(str(place / "run"))[0])
    settings = LinearProbeSettings.model_validate({"sets": [{"name": "dtd", "root": "x"}]})
    with pytest.raises(DatasetError, match=f"shapes: expected.*{said}"):
        probe(settings, (broken, splits[1]), embedder, 16, map_here, 0, 100)


def test_names_are_put_together_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a picture would be hours for CIFAR's 50,000, whose names are made when they are asked for."""
    splits = ask(job_of(place, str(tmp_path / "out"))).probed[0]
    asked = 0
    names = TarPictures.names

    def counted(self: TarPictures) -> Sequence[str]:
        nonlocal asked
        asked += 1
        return names(self)

    monkeypatch.setattr(TarPictures, "names", counted)
    embedder = Embedder(load_towers(str(place / "run"))[0])
    settings = LinearProbeSettings.model_validate({"sets": [{"name": "dtd", "root": "x"}]})
    probe(settings, splits, embedder, 16, map_here, 0, 100)
    assert asked < 5
