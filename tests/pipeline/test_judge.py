"""A threshold that is a share of the pool is exactly the score at that rank, however the pool is cut into spans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pool import small_pool, verdicts_by_name

from pipeline.filters import CaptionLength, Score
from pipeline.filters.score import threshold_place
from pipeline.judge import judge, ordered_bits, with_thresholds
from pipeline.pool import Pool

COLUMNS = pa.schema([pa.field("clip_score", pa.float32())])
FLOATS = st.lists(st.floats(allow_nan=False, width=32), min_size=2, max_size=50)


@given(FLOATS)
def test_bits_are_in_the_order_of_the_scores(scores: list[float]) -> None:
    values = np.array(scores, np.float32)
    bits = ordered_bits(values)
    assert (values[np.argsort(bits, kind="stable")] == np.sort(values)).all()
    assert ((bits[:-1] == bits[1:]) == (values[:-1] == values[1:])).all()


def pool_of(folder: Path, scores: list[float | None]) -> Pool:
    rows = [{"pair_id": f"{number:016x}", "clip_score": score} for number, score in enumerate(scores)]
    return small_pool(folder, rows, COLUMNS, per_shard=7)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("share", [0.001, 0.3, 1.0])
def test_the_best_share_of_the_pool_stays(tmp_path: Path, share: float) -> None:
    chance = np.random.default_rng(0)
    values = np.round(chance.normal(0, 0.3, 100), 2).astype(np.float32)  # with many equal ones
    scores = [*map(float, values), None, float("nan"), -0.0, 0.0]
    pool = pool_of(tmp_path, scores)
    known = np.sort([one for one in scores if one is not None and one == one])[::-1]
    threshold = known[threshold_place(share, len(known))]
    (found,) = with_thresholds(pool, [Score(column="clip_score", top_share=share)])
    assert isinstance(found, Score)
    assert found.min == pytest.approx(threshold, abs=0)
    judge(pool, [found], lambda *_, **__: None)
    for number, (reason, _) in enumerate(verdicts_by_name(pool).values()):
        score = scores[number]
        if score is None or score != score:
            assert reason == "no_score"
        else:
            assert (reason is None) == (np.float32(score) >= np.float32(threshold)), number


@pytest.mark.usefixtures("ray_session")
def test_where_nobody_has_a_score_there_is_no_threshold(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, [None, None])
    words = CaptionLength()
    found, same = with_thresholds(pool, [Score(column="clip_score", top_share=0.3), words])
    assert same is words
    judge(pool, [found], lambda *_, **__: None)
    assert set(verdicts_by_name(pool).values()) == {("no_score", None)}
