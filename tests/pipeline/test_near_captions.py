"""Captions that say nearly the same are found, none is that says something else, and one pass over all agrees."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from small_pool import small_pool, verdicts_by_name

from pipeline.all_pairs import nearest
from pipeline.near_captions import CAPTION_COLUMNS, CaptionsAlike, NearCaptions, caption_keys
from pipeline.nearness import best_alike, refuse_the_alike, row_of

WORDS = [f"{start}{end}" for start in ("ba", "ko", "li", "mu", "ne", "so", "ta", "vi") for end in "abcdefghijklmnop"]


def captions(count: int, seed: int = 0) -> list[str]:
    """Half are others with a few words changed, dropped or added."""
    chance = random.Random(seed)
    found = [chance.choices(WORDS, k=chance.randint(4, 25)) for _ in range(count // 2)]
    for caption in list(found):
        copy = list(caption)
        for _ in range(chance.randint(0, 3)):
            at, kind = chance.randrange(len(copy)), chance.randrange(3)
            copy[at : at + (kind != 1)] = [] if kind == 0 and len(copy) > 1 else [chance.choice(WORDS)]
        found.append(copy)
    chance.shuffle(found)
    return [" ".join(caption) for caption in found]


def similarities(some: list[str], words: int) -> npt.NDArray[np.float64]:
    """(captions, captions): Jaccard of the sets of runs of words."""
    split = [caption.split() for caption in some]
    sets = [{tuple(one[at : at + words]) for at in range(max(len(one) - words, 0) + 1)} for one in split]
    number = {run: at for at, run in enumerate(sorted(set().union(*sets)))}
    has = np.zeros((len(some), len(number)))
    for row, found in enumerate(sets):
        has[row, [number[run] for run in found]] = 1
    shared, sizes = has @ has.T, has.sum(axis=1)
    return np.asarray(shared / (sizes[:, None] + sizes[None, :] - shared))


def pairs(some: list[str]) -> pa.Table:
    return pa.table(
        {"row": range(len(some)), "pair_id": [f"{row:016x}" for row in range(len(some))],
         "original_width": [9] * len(some), "original_height": [9] * len(some), "caption": some}
    )  # fmt: skip


def one_pass(some: list[str], settings: NearCaptions) -> dict[int, int]:
    """Refused -> the first that stays and is similar."""
    near = similarities(some, settings.shingle_words) >= settings.min_similarity
    refused: dict[int, int] = {}
    stays: list[int] = []
    for row in range(len(some)):
        first = next((at for at in stays if near[row, at]), None)
        if first is None:
            stays.append(row)
        else:
            refused[row] = first
    return refused


def refused(keys: pa.Table, settings: NearCaptions) -> dict[int, int]:
    edges = refuse_the_alike(lambda among: best_alike(keys, partial(CaptionsAlike, settings=settings), among))
    return {int(row_of(edge["rank"])): int(row_of(edge["best"])) for edge in edges}


def near(*some: str, **settings: float) -> bool:
    """Whether all but the first are refused beside the first, or none is."""
    rule = NearCaptions(**settings)  # type: ignore[arg-type]
    found = refused(caption_keys(pairs(list(some)), rule), rule)
    assert found in ({}, dict.fromkeys(range(1, len(some)), 0))
    return bool(found)


@pytest.mark.parametrize(("shingle_words", "min_similarity"), [(1, 0.8), (2, 0.8), (2, 0.6), (3, 0.7)])
def test_alike_captions_share_a_key_as_often_as_said(shingle_words: int, min_similarity: float) -> None:
    settings = NearCaptions(shingle_words=shingle_words, min_similarity=min_similarity)
    some = captions(1200)
    keys = caption_keys(pairs(some), settings)
    of_row = np.asarray(keys["key"]).reshape(settings.bands, len(some)).T
    exact = similarities(some, shingle_words)
    similar = np.argwhere(np.triu(exact >= min_similarity, 1)).tolist()
    found = [pair for pair in similar if set(of_row[pair[0]].tolist()) & set(of_row[pair[1]].tolist())]
    assert len(similar) > 150
    assert len(found) / len(similar) >= 0.99
    expected = one_pass(some, settings)
    ours = refused(keys, settings)
    assert all(exact[row, of] >= min_similarity for row, of in ours.items())
    assert len(set(ours) ^ set(expected)) <= 0.02 * len(expected)


@pytest.mark.parametrize("few", [4, 128])
def test_in_a_crowd_with_one_key_one_pass_agrees(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr("pipeline.nearness._FEW", few)
    settings = NearCaptions(min_similarity=0.7)
    some = captions(400, seed=1)
    keys = caption_keys(pairs(some), settings).slice(0, len(some))
    keys = keys.set_column(0, "key", pa.array(np.zeros(len(some), np.uint64)))
    expected = one_pass(some, settings)
    assert len(expected) > 60
    assert refused(keys, settings) == expected


def test_a_crowd_of_captions_is_parted() -> None:
    settings = NearCaptions()
    some = [caption for seed in range(5) for caption in captions(200, seed)]
    rows = caption_keys(pairs(some), settings).slice(0, len(some))
    rows = rows.set_column(0, "key", pa.array(np.zeros(len(some), np.uint64)))
    halves = CaptionsAlike(rows, settings).split(np.arange(len(some)))
    assert halves is not None
    assert max(map(len, halves)) < 0.7 * len(some)
    assert set(halves[0].tolist()) | set(halves[1].tolist()) == set(range(len(some)))


def test_case_punctuation_and_repeated_words_do_not_count() -> None:
    assert near("Red-roofed barn, in the SNOW!", "red roofed barn in the snow", "Red roofed barn in the snow ...")
    assert near("Éclairs au café", "éclairs AU CAFÉ.", min_similarity=1)
    assert near("so so so good", "so so good", min_similarity=1), "a set knows no counts"
    assert not near("a man bites a dog", "a dog bites a man")
    assert near("a man bites a dog", "a dog bites a man", shingle_words=1)


def test_one_word_more_or_another_word() -> None:
    assert near("a b c d e", "a b c d e f")
    assert not near("a b c d", "a b c d e")
    words = list("abcdefghijklmnopqrs")
    assert near(" ".join(words), " ".join([*words[:9], "other", *words[10:]]))
    assert not near(" ".join(words[1:]), " ".join([*words[1:9], "other", *words[10:]]))


def test_short_captions_are_one_run_and_captions_without_a_word_are_like_no_other() -> None:
    assert near("Dog", "dog.")
    assert not near("dog", "dog park")
    assert near("red car", "Red car", shingle_words=3)
    assert not near("red car", "car red", shingle_words=3)
    assert not near("", "", "?!", "?!", "🙂")
    assert caption_keys(pairs(["", "?"]), NearCaptions()).num_rows == 0
    assert caption_keys(pairs([]), NearCaptions()).num_rows == 0


def test_scripts_without_blanks_have_a_word_a_character() -> None:
    caption = "北京故宫博物院的冬天雪景照片非常漂亮"
    assert near(caption, caption + "了")
    assert not near(caption, "上海外滩的夜景照片")


def test_keys_are_the_same_on_every_machine() -> None:
    keys = caption_keys(pairs(["A red barn in the snow", "Снег на крыше"]), NearCaptions())
    assert np.bitwise_xor.reduce(np.asarray(keys["key"])) == KEYS
    assert np.bitwise_xor.reduce(np.asarray(keys["same"])) == SAME


KEYS, SAME = 0x725724353E85841C, 0xEF58A88A66FB4127


@pytest.mark.usefixtures("ray_session")
def test_tasks_refuse_what_one_pass_refuses(tmp_path: Path) -> None:
    some = captions(120, seed=3)
    rows = [{"pair_id": f"{row:016x}", "caption": caption, "original_width": 64 + (row == 119) * 9}
            for row, caption in enumerate([*some, some[0], some[0]])]  # fmt: skip
    settings = NearCaptions(min_similarity=0.6)
    spans = {}
    for shards_per_span in (1, 50):
        pool = small_pool(tmp_path / str(shards_per_span), rows, pa.schema([]), 45, shards_per_span)
        keys, alike = partial(caption_keys, settings=settings), partial(CaptionsAlike, settings=settings)
        pool = nearest(pool, "duplicates.captions", "near_caption", CAPTION_COLUMNS, keys, settings.bands, alike)
        spans[shards_per_span] = verdicts_by_name(pool)
    assert spans[1] == spans[50]
    order = sorted(range(len(rows)), key=lambda row: (-rows[row]["original_width"], row))  # type: ignore[operator]
    everything = [*some, some[0], some[0]]
    expected = one_pass([everything[row] for row in order], settings)
    found = {int(name, 16) for name, (reason, _) in spans[1].items() if reason == "near_caption"}
    assert found == {order[at] for at in expected}
    assert spans[1][f"{121:016x}"][1] in (f"of {0:016x}", f"of {119:016x}")
