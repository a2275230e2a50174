"""Heads for VQA v2 and SNLI-VE on miniatures in the published layout: coloured shapes, and questions about them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from small_checkpoint import SMALL_MODEL, small_checkpoint
from small_dataset import small_dataset

from hiclip.evaluation.asked import ask
from hiclip.evaluation.blocks import map_here
from hiclip.evaluation.embed import Embedder
from hiclip.evaluation.evaluate_job import EvaluateJob
from hiclip.evaluation.evaluation_bill import bill
from hiclip.evaluation.heads.head_settings import HeadTraining
from hiclip.evaluation.heads.head_task import HeadTask, Questions, worths_of
from hiclip.evaluation.heads.measure_heads import AskedHead, HeadMeasurer, MeasuredHead, ask_heads, head_results
from hiclip.evaluation.heads.snli_ve import SnliVeSettings
from hiclip.evaluation.heads.train_head import Training, _first_state, train_epoch
from hiclip.evaluation.heads.vqa_v2 import VqaV2Settings
from hiclip.evaluation.run_evaluation import evaluate
from hiclip.evaluation.set_pictures import StoredPictures
from hiclip.model.two_towers import TwoTowers
from pipeline.jobfile import JobError, make_job
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, folder

COLOURS = ("red", "green", "blue")
QUICK = HeadTraining(epochs=25, batch=32, hidden=64, dropout=0.1, learning_rate=5e-3)


def _draw(file: Path, colour: str, count: int, shift: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (32, 32), "white")
    for number in range(count):
        left = 2 + shift % 4 + 15 * number
        ImageDraw.Draw(image).ellipse((left, 6, left + 11, 24), fill=colour)
    image.save(file, quality=95)


def _people(answer: str, other: str) -> list[dict[str, Any]]:
    said = [answer] * 7 + [answer.upper()] + [other] * 2
    return [{"answer": one, "answer_confidence": "yes", "answer_id": place + 1} for place, one in enumerate(said)]


def _write_vqa(root: Path, split: str, pictures: int, first: int, annotated: bool = True) -> None:
    folder_name = "test2015" if split.startswith("test") else split
    questions, annotations = [], []
    for number in range(first, first + pictures):
        colour, count = COLOURS[number % 3], 1 + number // 3 % 2
        _draw(root / folder_name / f"COCO_{folder_name}_{number:012d}.jpg", colour, count, number)
        asked = [
            ("What colour is it?", "other", colour, "dark"),
            (f"Is it {COLOURS[number // 2 % 3]}?", "yes/no", "yes" if number // 2 % 3 == number % 3 else "no", "maybe"),
            ("How many are there?", "number", "one" if count == 1 else "two", "many"),
        ]
        for place, (question, kind, answer, other) in enumerate(asked):
            key = {"question_id": 10 * number + place, "image_id": number}
            questions.append({**key, "question": question})
            people = _people(answer, other)
            said = {"answer_type": kind, "question_type": "none of the above", "multiple_choice_answer": answer}
            annotations.append({**key, **said, "answers": people})
    root.joinpath(f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(
        json.dumps({"info": {}, "task_type": "Open-Ended", "questions": questions})
    )
    if annotated:
        root.joinpath(f"v2_mscoco_{split}_annotations.json").write_text(
            json.dumps({"info": {}, "annotations": annotations})
        )


def _write_snli(root: Path) -> None:
    for place, (split, pictures) in enumerate({"train": 24, "dev": 6, "test": 9}.items()):
        lines = []
        for number in range(100 * place, 100 * place + pictures):
            colour = COLOURS[number % 3]
            _draw(root / f"flickr30k-images/{number}.jpg", colour, 1, number)
            for other in COLOURS:
                label = "entailment" if other == colour else "contradiction"
                lines.append(_pair(number, f"The shape is {other}.", label))
            lines.append(_pair(number, "Somebody likes it.", "neutral"))
        lines.append(_pair(100 * place, "It is unclear.", "-"))
        root.joinpath(f"snli_ve_{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _pair(picture: int, sentence: str, label: str) -> dict[str, str]:
    named = {"Flickr30K_ID": str(picture), "captionID": f"{picture}.jpg#0", "pairID": f"{picture}.jpg#0r1e"}
    return {**named, "sentence1": "A shape.", "sentence2": sentence, "gold_label": label}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("heads")
    (root / "vqa").mkdir()
    (root / "snli").mkdir()
    _write_vqa(root / "vqa", "train2014", 36, first=100)
    _write_vqa(root / "vqa", "val2014", 12, first=200)
    _write_vqa(root / "vqa", "test-dev2015", 3, first=300, annotated=False)
    _write_snli(root / "snli")
    return root


@pytest.fixture(scope="module")
def towers() -> TwoTowers:
    torch.manual_seed(3)
    return TwoTowers(SMALL_MODEL).eval()


def _vqa(root: Path, **changes: Any) -> VqaV2Settings:
    return VqaV2Settings(**{"name": "vqa_v2", "root": str(root), "train": QUICK, "choose_share": 0.1, **changes})


def _asked(settings: VqaV2Settings | SnliVeSettings) -> AskedHead:
    return ask_heads([settings])[0]


def _measurer(towers: TwoTowers, out: Path, map_blocks: Any = map_here, seed: int = 0) -> HeadMeasurer:
    return HeadMeasurer(Embedder(towers), "0" * 64, map_blocks, Folder(str(out)), seed, batch=16, draws=100)


def _on_its_own(asked: AskedHead) -> AskedHead:
    """The same head, chosen and measured by the questions that it learns."""
    task = replace(asked.task, choose=asked.task.train, measured=asked.task.train)
    return replace(asked, task=task, fingerprint=task.fingerprint)


def _values(measured: MeasuredHead) -> dict[str, float]:
    return {result.metric: result.value for result in measured.results}


def test_vqa_is_read_as_published(place: Path) -> None:
    task = _vqa(place / "vqa", test_dev=True).load()
    assert task.answers == ("no", "1", "2", "blue", "green", "red", "yes"), "the commonest first, then by letters"
    assert (len(task.train), len(task.choose), len(task.measured)) == (96, 12, 36)
    assert set(task.train.pictures).isdisjoint(task.choose.pictures), "a picture's questions stay together"
    assert len(task.pictures) == 36 + 12 + 3
    assert len(task.texts) == 5, "equal questions are one text"
    first = [f"val2014/COCO_val2014_{200:012d}.jpg", "What colour is it?"]
    measured = task.measured
    assert [task.pictures.names()[measured.pictures[0]], task.texts[measured.texts[0]]] == first
    table = measured.worths.table(np.array([0, 2]), len(task.answers))
    assert table[0].tolist() == [0, 0, 0, 1, 0, 0, 0], "blue by eight; 'dark' is no answer that the head can give"
    assert table[1].tolist() == [0, 1, 0, 0, 0, 0, 0], "'one' and 'ONE' are 1"
    assert task.submission is not None
    assert task.submission.ids[:2].tolist() == [3000, 3001]
    assert _vqa(place / "vqa", test_dev=True).load().fingerprint == task.fingerprint
    assert _vqa(place / "vqa", min_count=13).load().answers == ("no", "1", "2")


def test_worths_are_what_a_dictionary_says() -> None:
    worths = worths_of([{2: 0.3, 0: 1.0}, {}, {1: 0.6}])
    assert worths.table(np.array([2, 1, 0, 0]), 3) == pytest.approx(
        np.array([[0, 0.6, 0], [0, 0, 0], [1, 0, 0.3], [1, 0, 0.3]])
    )
    assert worths.of(np.array([2, 0, 1])) == pytest.approx([0.3, 0, 0.6])
    assert worths.of(np.array([-1, -1, 0])) == pytest.approx([0, 0, 0])
    assert worths.by_question() == pytest.approx([1.3, 0, 0.6])
    assert worths.by_answer(4) == pytest.approx([1.0, 0.6, 0.3, 0])


def test_a_frozen_head_learns_what_a_blind_one_cannot(place: Path, towers: TwoTowers, tmp_path: Path) -> None:
    measurer = _measurer(towers, tmp_path)
    both = _on_its_own(_asked(_vqa(place / "vqa")))
    blind = _on_its_own(_asked(_vqa(place / "vqa", train=QUICK.model_copy(update={"inputs": "text"}))))
    sees, guesses = measurer.measure(both), measurer.measure(blind)
    assert (sees.set, guesses.set) == ("vqa_v2-frozen", "vqa_v2-frozen-text")
    majority = sees.results[0].baselines["majority"]
    assert _values(sees)["accuracy"] > majority + 0.3
    assert _values(sees)["accuracy_other"] > 0.9, "colours are seen"
    assert _values(guesses)["accuracy"] > majority, "a question tells what kind of answer it wants"
    # Three colours of 32 pictures: who cannot see names one of them.
    assert _values(guesses)["accuracy_other"] <= 12 / 32
    assert sees.epochs[-1].loss < sees.epochs[0].loss
    assert max(row.choose for row in sees.epochs) == sees.epochs[sees.chosen - 1].choose
    assert (guesses.broken, sees.questions, sees.pictures, sees.answers) == (0, 96, 32, 7)


def test_a_head_learns_entailment(place: Path, towers: TwoTowers, tmp_path: Path) -> None:
    asked = _asked(SnliVeSettings(name="snli_ve", root=str(place / "snli"), train=QUICK))
    assert asked.task.answers == ("entailment", "neutral", "contradiction")
    assert asked.task.left_out == 3
    assert len(asked.task.texts) == 4
    measured = _measurer(towers, tmp_path).measure(asked)
    assert [result.metric for result in measured.results] == ["accuracy_val_test", "accuracy_dev", "accuracy_test"]
    pooled, dev, test = measured.results
    assert pooled.value == pytest.approx((24 * dev.value + 36 * test.value) / 60)
    assert (pooled.count, dev.count, test.count) == (15, 6, 9)
    assert pooled.chance == pytest.approx(1 / 3)
    assert pooled.baselines["majority"] == pytest.approx(0.5), "two of four sentences contradict"
    assert pooled.value > 0.6
    assert pooled.low <= pooled.value <= pooled.high
    assert measured.epochs[measured.chosen - 1].choose == pytest.approx(dev.value)


def test_fine_tuning_changes_a_copy_of_the_towers(place: Path, towers: TwoTowers, tmp_path: Path) -> None:
    given = copy.deepcopy(towers.state_dict())
    _measurer(towers, tmp_path / "frozen").measure(_asked(_vqa(place / "vqa")))  # what it caches is no obstacle
    settings = QUICK.model_copy(update={"mode": "finetune", "epochs": 2, "tower_learning_rate": 1e-3})
    asked = _asked(_vqa(place / "vqa", train=settings))
    measured = _measurer(towers, tmp_path).measure(asked)
    assert measured.set == "vqa_v2-finetune"
    assert measured.epochs[1].loss < measured.epochs[0].loss
    assert all(torch.equal(tensor, given[name]) for name, tensor in towers.state_dict().items())

    training = Training("tuned", asked.task, settings, Embedder(towers), None, seed=0)
    before = _first_state(training)
    after = train_epoch(training, before).state
    moved = {name for name in before.model if not torch.equal(before.model[name], after.model[name])}
    assert any(name.startswith("towers.image_tower") for name in moved)
    assert any(name.startswith("towers.text_tower") for name in moved)
    assert all(torch.equal(before.model[f"towers.{name}"], tensor) for name, tensor in given.items())

    blind = replace(training, settings=settings.model_copy(update={"inputs": "text"}))
    before = _first_state(blind)
    after = train_epoch(blind, before).state
    moved = {name for name in before.model if not torch.equal(before.model[name], after.model[name])}
    assert not any(name.startswith("towers.image_tower") for name in moved)
    assert any(name.startswith("towers.text_tower") for name in moved)


class _Interrupted(Exception):
    """What the power cut of a test raises."""


def _until(what: str | None, seen: list[str]) -> Callable[..., Iterator[Any]]:
    def mapped(function: Any, shared: Any, blocks: Any, label: str) -> Iterator[Any]:
        if what is not None and label.endswith(what):
            raise _Interrupted
        seen.append(label)
        yield from map_here(function, shared, blocks, label)

    return mapped


def _files(root: Path) -> dict[str, bytes]:
    return {
        file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*.safetensors") if file.is_file()
    }


def _without_seconds(measured: MeasuredHead) -> dict[str, Any]:
    said = measured.model_dump(exclude={"seconds": True, "epochs": {"__all__": {"seconds"}}})
    return said


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_an_interrupted_head_ends_as_an_undisturbed_one(
    mode: str, place: Path, towers: TwoTowers, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"mode": mode, "epochs": 4, "tower_learning_rate": 1e-4})
    asked = _asked(_vqa(place / "vqa", train=settings))
    whole = _measurer(towers, tmp_path / "whole").measure(asked)
    again = _measurer(towers, tmp_path / "again").measure(asked)
    assert _without_seconds(again) == _without_seconds(whole)
    assert _files(tmp_path / "again") == _files(tmp_path / "whole") != {}

    seen: list[str] = []
    with pytest.raises(_Interrupted):
        _measurer(towers, tmp_path / "cut", _until("epoch 3 of 4", seen)).measure(asked)
    assert "vqa_v2-" + mode + ": epoch 2 of 4" in seen
    seen.clear()
    cut = _measurer(towers, tmp_path / "cut", _until(None, seen))
    assert _without_seconds(cut.measure(asked)) == _without_seconds(whole)
    assert not any(label.endswith(("epoch 1 of 4", "epoch 2 of 4")) for label in seen)
    assert _files(tmp_path / "cut") == _files(tmp_path / "whole")
    assert len(_files(tmp_path / "cut")) == 1, "only the chosen weights stay"

    # A finished head is not computed again, and another seed is another head.
    seen.clear()
    assert cut.measure(asked) == cut.measure(asked)
    assert seen == []
    other = _measurer(towers, tmp_path / "cut", seed=1)
    assert other.key(asked) != cut.key(asked)


def test_damaged_progress_is_trained_again(
    place: Path, towers: TwoTowers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = _asked(_vqa(place / "vqa", train=QUICK.model_copy(update={"epochs": 3})))
    whole = _measurer(towers, tmp_path / "whole").measure(asked)
    with pytest.raises(_Interrupted):
        _measurer(towers, tmp_path / "cut", _until("epoch 3 of 3", [])).measure(asked)
    (last,) = (tmp_path / "cut").rglob("last-*.safetensors")
    last.write_bytes(last.read_bytes()[:100])
    assert _without_seconds(_measurer(towers, tmp_path / "cut").measure(asked)) == _without_seconds(whole)
    assert "is trained again" in caplog.text


def _hand_made() -> HeadTask:
    """Two pictures; of the first three questions (two yes/no, one number), of the second one (other)."""
    asked = Questions(
        pictures=np.array([0, 0, 0, 1]),
        texts=np.zeros(4, dtype=np.int64),
        worths=worths_of([{0: 1.0}, {0: 0.3, 1: 1.0}, {2: 0.6}, {3: 0.9, 0: 0.3}]),
        kinds=np.array([0, 0, 1, 2]),
    )
    metrics = (("accuracy", None), ("accuracy_yes_no", 0), ("accuracy_number", 1), ("accuracy_other", 2))
    pictures = StoredPictures(("a", "b"), (b"", b""))
    return HeadTask(pictures, ("?",), ("yes", "no", "2", "red"), metrics, "binary", asked, asked, asked)


def test_averages_by_kind_are_those_of_the_hand() -> None:
    guesses = np.array([0, 0, 2, -1])  # right, 0.3, 0.6; the picture of the last cannot be read
    results = {one.metric: one for one in head_results("vqa", _hand_made(), guesses, seed=0, draws=200)}
    values = {metric: one.value for metric, one in results.items()}
    shares = {"accuracy": 1.9 / 4, "accuracy_yes_no": 0.65, "accuracy_number": 0.6, "accuracy_other": 0.0}
    assert values == pytest.approx(shares)
    assert results["accuracy"].chance == pytest.approx((1.0 + 1.3 + 0.6 + 1.2) / 4 / 4)
    assert results["accuracy"].baselines["majority"] == pytest.approx((1.0 + 0.3 + 0.3) / 4), "always yes"
    assert results["accuracy_number"].baselines["majority"] == 0.0
    assert [one.count for one in results.values()] == [2, 1, 1, 1], "pictures, not questions"
    # A picture is drawn with all its questions: twice the first, each once, twice the second.
    assert (results["accuracy"].low, results["accuracy"].high) == pytest.approx((0.0, 1.9 / 3))
    assert (results["accuracy_yes_no"].low, results["accuracy_yes_no"].high) == pytest.approx((0.65, 0.65))


def test_answers_for_the_server(place: Path, towers: TwoTowers, tmp_path: Path) -> None:
    root = tmp_path / "vqa"
    root.mkdir()
    for split, pictures, first in (("train2014", 12, 0), ("val2014", 3, 50), ("test-dev2015", 3, 80)):
        _write_vqa(root, split, pictures, first, annotated=not split.startswith("test"))
    (root / f"test2015/COCO_test2015_{80:012d}.jpg").unlink()
    settings = QUICK.model_copy(update={"epochs": 1})
    asked = _asked(_vqa(root, test_dev=True, min_count=1, train=settings))
    measured = _measurer(towers, tmp_path / "out").measure(asked)
    assert measured.submission is not None
    said = json.loads((tmp_path / "out" / measured.submission).read_text())
    assert [one["question_id"] for one in said] == [800, 801, 802, 810, 811, 812, 820, 821, 822]
    assert all(set(one) == {"question_id", "answer"} and one["answer"] in asked.task.answers for one in said)
    assert {one["answer"] for one in said[:3]} == {"no"}, "without its picture: the commonest answer in training"


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_questions_about_missing_pictures_are_wrong(mode: str, towers: TwoTowers, tmp_path: Path) -> None:
    root = tmp_path / "vqa"
    root.mkdir()
    for split, pictures, first in (("train2014", 12, 0), ("val2014", 6, 50)):
        _write_vqa(root, split, pictures, first)
    settings = QUICK.model_copy(update={"mode": mode, "epochs": 2})
    asked = _vqa(root, min_count=1, train=settings)
    whole = _asked(asked)
    learnt = len(whole.task.train)
    shown = int(whole.task.train.pictures[0])
    (root / whole.task.pictures.names()[shown]).write_bytes(b"no picture")
    for number in range(50, 55):
        (root / f"val2014/COCO_val2014_{number:012d}.jpg").unlink()
    measured = _measurer(towers, tmp_path / "out").measure(_asked(asked))
    assert (measured.pictures, measured.broken) == (6, 5)
    assert [row.learnt for row in measured.epochs] == [learnt - 3] * 2
    assert _values(measured)["accuracy"] <= 3 / 18, "only one picture of six is left to be right about"
    for file in root.glob("train2014/*.jpg"):
        file.unlink()
    with pytest.raises(DatasetError, match="no picture of the training questions can be read"):
        _measurer(towers, tmp_path / "nothing").measure(_asked(asked))


def test_a_rate_that_is_too_high_is_said(place: Path, towers: TwoTowers, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"learning_rate": 1e30, "clip_norm": None})
    with pytest.raises(JobError, match="vqa_v2-frozen: the loss of epoch 1 is no number; learning_rate"):
        _measurer(towers, tmp_path).measure(_asked(_vqa(place / "vqa", train=settings)))


def _without_file(root: Path) -> None:
    (root / "v2_mscoco_val2014_annotations.json").unlink()


def _changed(root: Path, change: Callable[[list[Any]], object]) -> None:
    file = root / "v2_mscoco_train2014_annotations.json"
    content = json.loads(file.read_text())
    change(content["annotations"])
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without_file, "v2_mscoco_val2014_annotations.json: the evaluation set vqa_v2 is not there"),
        (lambda root: _changed(root, lambda all_: all_.pop(1)), "expected an annotation of question 1, came none"),
        (lambda root: _changed(root, lambda all_: all_[0]["answers"].pop()), "question 0: expected 10 answers, came 9"),
        (lambda root: _changed(root, lambda all_: all_[0].update(answer_type="maybe")), "annotations.0.answer_type"),
        (
            lambda root: (root / "v2_OpenEnded_mscoco_train2014_questions.json").write_text("{"),
            "questions.json: cannot be read: Invalid JSON",
        ),
        (
            lambda root: (root / "v2_OpenEnded_mscoco_train2014_questions.json").write_text('{"questions": []}'),
            "expected questions, came none",
        ),
    ],
)
def test_what_is_wrong_with_vqa_is_said_in_a_line(spoil: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    _write_vqa(tmp_path, "train2014", 4, 0)
    _write_vqa(tmp_path, "val2014", 2, 50)
    assert _vqa(tmp_path, min_count=1).load().answers
    spoil(tmp_path)
    with pytest.raises(DatasetError, match=said) as error:
        _vqa(tmp_path, min_count=1).load()
    assert "\n" not in str(error.value)


def test_answers_that_nobody_gives_often_enough(tmp_path: Path) -> None:
    _write_vqa(tmp_path, "train2014", 4, 0)
    _write_vqa(tmp_path, "val2014", 2, 50)
    with pytest.raises(DatasetError, match="min_count: expected a number that some answer reaches, came 9"):
        _vqa(tmp_path).load()
    _write_vqa(tmp_path, "train2014", 1, 0)
    with pytest.raises(DatasetError, match="two pictures or more"):
        _vqa(tmp_path, min_count=1).load()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"Flickr30K_ID": "1", "sentence2": "It.", "gold_label": "perhaps"}', "line 2: .*gold_label.*came 'perhaps'"),
        ('{"Flickr30K_ID": "1", "gold_label": "neutral"}', "line 2: .*sentence2: Field required"),
        ("{", "line 2: cannot be read: Invalid JSON"),
    ],
)
def test_what_is_wrong_with_snli_ve_is_said_in_a_line(line: str, said: str, tmp_path: Path) -> None:
    _write_snli(tmp_path)
    settings = SnliVeSettings(name="snli_ve", root=str(tmp_path))
    file = tmp_path / "snli_ve_dev.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(DatasetError, match=said):
        settings.load()
    file.write_text(json.dumps(_pair(1, "It.", "-")) + "\n")
    with pytest.raises(DatasetError, match=r"dev\.jsonl: expected labelled pairs, came none"):
        settings.load()
    file.unlink()
    with pytest.raises(DatasetError, match=r"snli_ve_dev\.jsonl: the evaluation set snli_ve is not there"):
        settings.load()


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_a_job_asks_for_heads(place: Path, tmp_path: Path) -> None:
    manifest = small_dataset(tmp_path / "build", pairs=8)
    small_checkpoint(tmp_path / "run", str(tmp_path / "build"), manifest.fingerprint)
    quick = {"epochs": 2, "batch": 32, "hidden": 16}
    content = {
        "name": "small-heads",
        "out": str(tmp_path / "out"),
        "checkpoint": str(tmp_path / "run"),
        "hierarchy": None,
        "draws": 100,
        "heads": [
            {"name": "vqa_v2", "root": str(place / "vqa"), "train": quick},
            {"name": "vqa_v2", "root": str(place / "vqa"), "train": {**quick, "inputs": "text"}},
            {"name": "snli_ve", "root": str(place / "snli"), "train": {**quick, "mode": "finetune"}},
        ],
    }
    job, seen = make_job(content, EvaluateJob, "small job"), list[str]()
    asked, out = ask(job), folder(job.out).make()
    assert asked.heads[0].task is asked.heads[1].task, "read once"
    assert bill(asked, 1).row_count >= 6
    outcome = evaluate(asked, _until(None, seen), out)
    labels = ["vqa_v2-frozen", "vqa_v2-frozen-text", "snli_ve-finetune"]
    assert list(dict.fromkeys(result.set for result in outcome.results)) == list(outcome.sets) == labels
    assert seen.count("vqa_v2-frozen: texts") == 1
    assert "vqa_v2-frozen-text: texts" not in seen, "what two heads ask about is embedded once"
    page = out.read_text(outcome.report)
    assert "accuracy, yes/no" in page
    assert "accuracy, val+test" in page
    seen.clear()
    assert evaluate(asked, _until(None, seen), out).results == outcome.results
    assert seen == [], "finished heads are remembered"
    assert ask(make_job({**content, "seed": 1}, EvaluateJob, "small job")).key != asked.key
    twice = {**content, "heads": [content["heads"][0]] * 2}
    with pytest.raises(JobError, match="heads: expected each set once a mode and inputs, came vqa_v2-frozen twice"):
        make_job(twice, EvaluateJob, "small job")
    wrong = {**content, "heads": [{"name": "vqa", "root": "x"}]}
    with pytest.raises(JobError, match="vqa_v2"):
        make_job(wrong, EvaluateJob, "small job")
