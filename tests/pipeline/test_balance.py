"""Captions are matched as MetaCLIP matches them, and kept as often as its formula says, whatever their order."""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pool import small_pool, verdicts_by_name

from pipeline.balance import Balance, entry_counts, make_entries, matched, read_entries, refused
from pipeline.manifest import DatasetError
from pipeline.pair import pair_id
from pipeline.selection import balance

WORDS = st.lists(st.sampled_from(["a", "dog", "Dog", "red", "U.S.", "", "dog,", "b", "``", "x\ty"]), max_size=8)


def substring_search(caption: str, entries: list[str]) -> set[str]:
    """As metaclip/substr_matching.py does it."""
    text = f" {caption} "
    for mark in [",", ".", ";", ":", "?", "!", "`"]:
        text = text.replace(mark, f" {mark} ")
    for blank in ["\t", "\n", "\r"]:
        text = text.replace(blank, " ")
    return {entry for entry in entries if f" {entry} " in text}


@given(WORDS, st.lists(WORDS, max_size=8))
def test_matching_is_metaclips_substring_search(caption: list[str], entries: list[list[str]]) -> None:
    texts = ["dog", *(" ".join(entry) for entry in entries)]
    made = make_entries(texts)
    found = {made.texts[number] for number in matched(" ".join(caption), made)}
    assert found == substring_search(" ".join(caption), list(made.texts))


def test_a_few_captions_by_hand() -> None:
    made = make_entries(["dog", "red dog", "New York", "dog", " ", "york"])
    assert made.texts == ["dog", "red dog", "New York", "york"]
    for caption, entries in {
        "a red dog, running": {"dog", "red dog"}, "New York": {"New York"}, "new york": {"york"}, "dogs": set(),
        "New  York": set(), "the dog.": {"dog"},
    }.items():  # fmt: skip
        assert {made.texts[number] for number in matched(caption, made)} == entries, caption


def test_only_line_ends_part_entries(tmp_path: Path) -> None:
    (tmp_path / "entries.txt").write_bytes("a\u2028b\r\nc\x0cd\n\ne".encode())
    assert list(read_entries(str(tmp_path / "entries.txt")).texts) == ["a\u2028b", "c\x0cd", "e"]


def pairs_of(captions: list[str]) -> list[dict[str, str]]:
    return [{"pair_id": pair_id(f"http://a.example/{number}", caption), "caption": caption}
            for number, caption in enumerate(captions)]  # fmt: skip


def table(pairs: list[dict[str, str]]) -> pa.Table:
    ordered = sorted(pairs, key=lambda pair: pair["pair_id"])
    return pa.Table.from_pylist([pair | {"row": row} for row, pair in enumerate(ordered)])


COUNTS = {"rare": 50, "some": 1500, "common": 6000, "everywhere": 20_000}


def captions() -> list[str]:
    made = [f"a {entry} thing" for entry, count in COUNTS.items() for _ in range(count)]
    return made + ["some common thing"] * 2000 + ["nothing known"] * 30


def test_captions_stay_as_often_as_the_formula_says(tmp_path: Path) -> None:
    (tmp_path / "entries.txt").write_text("\n".join(COUNTS))
    settings = Balance(entries=str(tmp_path / "entries.txt"), most_per_entry=1000).ready()
    pairs = table(pairs_of(captions()))
    counts = entry_counts(pairs, settings.entries)
    assert counts.tolist() == [50, 3500, 8000, 20_000]
    found = refused(pairs, settings, counts)
    gone = set(found["row"].to_pylist())
    chance = {entry: min(1.0, 1000 / count) for entry, count in zip(COUNTS, counts.tolist(), strict=True)}
    expected = {f"a {entry} thing": one for entry, one in chance.items()}
    expected["some common thing"] = 1 - (1 - chance["some"]) * (1 - chance["common"])
    expected["nothing known"] = 0
    named = list(zip(pairs["row"].to_pylist(), pairs["caption"].to_pylist(), strict=True))
    for caption, rate in expected.items():
        rows = [row for row, text in named if text == caption]
        stays = sum(row not in gone for row in rows)
        sigma = math.sqrt(len(rows) * rate * (1 - rate))
        assert abs(stays - len(rows) * rate) <= 4 * sigma + 1e-9, (caption, stays, len(rows) * rate)
    told = {"a some thing": "some 3,500", "a common thing": "common 8,000", "a everywhere thing": "everywhere 20,000",
            "some common thing": "some 3,500, common 8,000", "nothing known": None}  # fmt: skip
    texts = dict(named)
    for one in found.to_pylist():
        text = texts[one["row"]]
        assert one["reason"] == ("no_entry" if text == "nothing known" else "balanced_away")
        assert one["detail"] == told[text]


def test_a_pair_is_judged_by_itself_and_by_the_seed(tmp_path: Path) -> None:
    (tmp_path / "entries.json").write_text(json.dumps(list(COUNTS)))
    settings = Balance(entries=str(tmp_path / "entries.json"), most_per_entry=300).ready()
    pairs = pairs_of(captions()[:6000])
    counts = np.array([50, 1500, 6000, 20_000])

    def stays(some: list[dict[str, str]], by: Balance) -> set[str]:
        rows = table(some)
        gone = set(refused(rows, by, counts)["row"].to_pylist())
        return {name for row, name in enumerate(rows["pair_id"].to_pylist()) if row not in gone}

    whole = stays(pairs, settings)
    random.Random(0).shuffle(pairs)
    assert stays(pairs[:2500], settings) | stays(pairs[2500:], settings) == whole
    assert stays(pairs, settings.model_copy(update={"seed": 1})) != whole


@pytest.mark.usefixtures("ray_session")
def test_entries_are_counted_over_all_spans(tmp_path: Path) -> None:
    (tmp_path / "entries.txt.gz").write_bytes(gzip.compress(b"dog\ncat\n"))
    pairs = [*pairs_of(["a dog"] * 40), *pairs_of(["a cat"] * 3), *pairs_of(["a bird"] * 2)]
    pairs = list({pair["pair_id"]: pair for pair in pairs}.values())
    pool = small_pool(tmp_path, [pair | {"source": "s"} for pair in pairs], pa.schema([]), per_shard=4)
    found = verdicts_by_name(balance(pool, Balance(entries=str(tmp_path / "entries.txt.gz"), most_per_entry=4).ready()))
    by_caption = {caption: [found[pair["pair_id"]] for pair in pairs if pair["caption"] == caption]
                  for caption in ("a dog", "a cat", "a bird")}  # fmt: skip
    assert set(by_caption["a cat"]) == {(None, None)}
    assert set(by_caption["a bird"]) == {("no_entry", None)}
    assert set(by_caption["a dog"]) == {(None, None), ("balanced_away", "dog 40")}
    assert by_caption["a dog"].count((None, None)) < 12


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("a.txt", b"\n \n", "expected entries, found none"), ("a.json", b'{"a": 1}', "expected a list of texts"),
     ("a.json", b"[1]", "expected a list of texts"), ("a.json", b"nope", "cannot be read as a list of entries"),
     ("a.txt.gz", b"no gzip", "cannot be read as a list of entries"), ("a.txt", b"\xff", "cannot be read")],
)  # fmt: skip
def test_a_file_that_is_no_list_of_entries(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=said) as caught:
        read_entries(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match="expected the file with sha256 0000"):
        Balance(entries=str(tmp_path / name), sha256="0" * 64).ready()
