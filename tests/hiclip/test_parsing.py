"""Parse F1 by hand, given trees in both formats, words and their tokens, and the command end to end."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from small_checkpoint import SMALL_MODEL, small_checkpoint

from hiclip.data.tokenizer import Tokenizer
from hiclip.evaluation.agreement_figure import parse_figure
from hiclip.evaluation.asked import ask
from hiclip.evaluation.blocks import map_here
from hiclip.evaluation.bootstrap import weighted_mean
from hiclip.evaluation.evaluate_job import EvaluateJob
from hiclip.evaluation.parsing import (
    GivenTree,
    _halves,
    _left,
    _random,
    _right,
    aligned,
    f1_parts,
    read_trees,
)
from hiclip.evaluation.run_evaluation import evaluate
from pipeline.jobfile import JobError, make_job
from pipeline.manifest import DatasetError
from pipeline.storage import folder

FOUR = GivenTree(("a", "b", "c", "d"), frozenset({(0, 2), (2, 4), (0, 4)}))


def _f1(given: list[GivenTree], found: list[set[tuple[int, int]]]) -> list[float]:
    spans = [frozenset(one) for one in found]
    return [float(value) for value in weighted_mean(np.ones((1, len(given))), *f1_parts(given, spans))[0]]


def test_f1_by_hand() -> None:
    assert _f1([FOUR], [{(0, 4), (1, 4), (2, 4)}]) == pytest.approx([0.5, 2 / 3])
    assert _f1([FOUR], [{(0, 4), (0, 2), (2, 4)}]) == [1.0, 1.0]
    assert _f1([FOUR], [{(0, 4)}]) == pytest.approx([0.0, 2 * 1 / (3 + 1)]), "a flat tree"
    # Two words have no inner span: they count in the corpus alone.
    two = GivenTree(("a", "b"), frozenset({(0, 2)}))
    assert _f1([FOUR, two], [{(0, 4), (1, 4), (2, 4)}, {(0, 2)}]) == pytest.approx([0.5, 2 * 3 / (4 + 4)])
    flat = GivenTree(("a", "b", "c"), frozenset({(0, 3)}))
    assert _f1([FOUR, flat], [{(0, 4), (0, 2), (2, 4)}, {(0, 3), (0, 2)}])[0] == 1.0, "nothing was given inside"


def test_trivial_trees() -> None:
    assert set(_left(0, 4)) == {(0, 2), (0, 3), (0, 4)}
    assert set(_right(0, 4)) == {(0, 4), (1, 4), (2, 4)}
    assert set(_halves(0, 5)) == {(0, 5), (0, 3), (0, 2), (3, 5)}
    trees = _random([FOUR] * 3000, seed=0)
    assert all(len(tree) == 3 and (0, 4) in tree for tree in trees)
    # Cut evenly at one of three places: ((a b) (c d)) comes up in a third, (a (b (c d))) in a sixth.
    assert np.mean([tree == {(0, 4), (0, 2), (2, 4)} for tree in trees]) == pytest.approx(1 / 3, abs=0.03)
    assert np.mean([tree == {(0, 4), (1, 4), (2, 4)} for tree in trees]) == pytest.approx(1 / 6, abs=0.03)
    assert _random([FOUR], 5) == _random([FOUR], 5)


def test_given_trees_in_both_formats(tmp_path: Path) -> None:
    file = tmp_path / "trees.txt"
    file.write_text("( ( a cat ) ( sits ( on it ) ) )\n\nalone\n( a b )\n")
    trees = read_trees(str(file), labelled=False)
    assert [tree.words for tree in trees] == [("a", "cat", "sits", "on", "it"), ("a", "b")]
    assert trees[0].spans == {(0, 5), (0, 2), (2, 5), (3, 5)}
    file.write_text("(S (NP (DT a) (NN cat)) (VP (VBZ sits) (PP (IN on) (PRP it))))\n")
    assert read_trees(str(file), labelled=True) == trees[:1]
    for content, why in (
        ("( a b )\n( ( a b )\n", "line 2: expected every bracket closed, came 1 open"),
        ("( a b ) )\n", "line 1: expected a bracket to close, came one too many"),
        ("alone\n", "expected trees of two words or more, came none"),
    ):
        file.write_text(content)
        with pytest.raises(DatasetError, match=why):
            read_trees(str(file), labelled=False)
    with pytest.raises(DatasetError, match="the given trees are not there"):
        read_trees(str(tmp_path / "nowhere.txt"), labelled=False)
    (tmp_path / "latin.txt").write_bytes("( un café )".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"latin.txt: expected text in UTF-8"):
        read_trees(str(tmp_path / "latin.txt"), labelled=False)


def test_words_find_their_tokens() -> None:
    tokenizer = Tokenizer(16)
    words = aligned(tokenizer, ["a", "skateboarder", "doesn't", "fall"])
    assert words is not None
    tokens = tokenizer.encode(["a skateboarder doesn't fall"])[0]
    assert words[0].first == 1
    assert words[-1].last == int(np.flatnonzero(tokens)[-1]) - 1, "up to the end of the text"
    assert all(left.last + 1 == right.first for left, right in itertools.pairwise(words))
    assert words[1].last > words[1].first, "a word of several pieces"
    assert aligned(tokenizer, ["word"] * 15) is None, "it does not fit"


def _job(place: Path, out: str, **changes: object) -> EvaluateJob:
    content = {
        "name": "parsing", "out": out, "checkpoint": str(place / "run"), "sets": [], "draws": 100, "batch": 3,
        "baselines": {"pixel_neighbours": None}, "dataset": None,
        "hierarchy": {"captions": [], "training_pairs": 0, "set_pictures": 0,
                      "trees": {"path": str(place / "trees.txt")}, **changes},
    }  # fmt: skip
    return make_job(content, EvaluateJob, "test")


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_the_command_beside_trees_that_know_nothing(tmp_path: Path) -> None:
    small_checkpoint(tmp_path / "run", "nowhere", "0" * 64)
    lines = [
        "( ( a red circle ) ( beside ( a blue square ) ) )",
        "( two ( small dogs ) )",
        "( the ( ( old man ) sleeps ) )",
    ]
    (tmp_path / "trees.txt").write_text("\n".join([*lines, "( long " + "( word " * 20 + ") " * 21]))
    job = _job(tmp_path, str(tmp_path / "out"))
    outcome = evaluate(ask(job), map_here, folder(job.out).make())
    found = {one.metric: one for one in outcome.results}
    assert list(found) == ["parse_f1", "parse_corpus_f1", "dendrogram_f1", "dendrogram_corpus_f1"]
    for one in found.values():
        assert set(one.baselines) == {"untrained", "left", "right", "halves", "random"}
        assert one.chance == one.baselines["random"]
        assert (one.set, one.count) == ("parsing", 3)
    assert found["dendrogram_f1"].baselines["right"] == pytest.approx(np.mean([2 * 2 / 8, 1.0, 2 * 1 / 4]))
    page = (tmp_path / "out/report.html").read_text()
    assert "Trees of captions beside given ones" in page
    assert "3 sentences, 1 more could not be aligned" in page
    assert (tmp_path / "out/hierarchy/parsing.png").read_bytes().startswith(b"\x89PNG")

    before = next((tmp_path / "out/sets").iterdir()).stat().st_mtime_ns
    assert evaluate(ask(job), map_here, folder(job.out)).results == outcome.results
    assert next((tmp_path / "out/sets").iterdir()).stat().st_mtime_ns == before


def test_a_model_without_affinities_has_no_trees(tmp_path: Path) -> None:
    from dataclasses import replace

    small_checkpoint(tmp_path / "run", "nowhere", "0" * 64, replace(SMALL_MODEL, text_hierarchy=False))
    (tmp_path / "trees.txt").write_text("( a b )")
    with pytest.raises(JobError, match=r"hierarchy\.trees: expected a model with affinities to read"):
        ask(_job(tmp_path, str(tmp_path / "out")))


def test_the_figure_is_drawn() -> None:
    from hiclip.evaluation.parsing import Parsed
    from hiclip.evaluation.result import Result

    one = Result(set="parsing", metric="parse_f1", value=0.35, chance=0.27, count=9, low=0.3, high=0.4, unit="share",
                 baselines={"left": 0.23, "right": 0.229, "random": 0.271})  # fmt: skip
    assert parse_figure(Parsed(results=[one], sentences=9, unaligned=[])).startswith(b"\x89PNG")
