"""The public data sets' rules as the job files have them: each row is refused for what the publication says of it.

Twice: on a row for each rule, at and beside its threshold, and on the sample crawl, where the publications' own words
are written down once more as plain Python that looks at one row at a time.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.annotations import LanguageAnnotation
from pipeline.build_job import BuildJob
from pipeline.filters import Filter
from pipeline.jobfile import read_job
from pipeline.pictures import format_of
from pipeline.sample_crawl import SERVED_SOURCES

ROOT = Path(__file__).parents[2]
CRAWL = ROOT / "jobs/walk/crawl"
Row = dict[str, Any]


def filters_of(name: str, *overrides: str) -> list[Filter]:
    """The filters of jobs/build_NAME.yaml, ready; `score.min=0.2` overrides a threshold of the filter `score`."""
    path = ROOT / f"jobs/build_{name}.yaml"
    steps = read_job(str(path), [], BuildJob).filters
    places = {one.step: (place, one.name) for place, one in enumerate(steps)}
    changes = []
    for override in overrides:
        step, _, setting = override.partition(".")
        place, name_in_job = places[step]
        changes.append(f"filters.{place}.{name_in_job}.{setting}")
    return [one.ready() for one in read_job(str(path), changes, BuildJob).filters]


def first_refusals(pairs: pa.Table, filters: Sequence[Filter]) -> list[str | None]:
    """(pairs,) reason of the first filter that refuses a pair."""
    columns = [one.reasons(pairs).to_pylist() for one in filters]
    return [next(filter(None, row), None) for row in zip(*columns, strict=True)]


def word_lists(place: Path, lists: Mapping[str, Iterable[str]]) -> list[str]:
    """Overrides that give a job's filters `caption_words` other lists, by the names of theirs."""
    for name, words in lists.items():
        (place / f"{name}.txt").write_text("\n".join(sorted(words)))
    return [f"caption_words_{name}.list={place / name}.txt" for name in lists]


GOOD = "a brown dog runs over the green field"
KNOWN = ("a", "brown", "dog", "runs", "over", "the", "green", "field", "x", "damn")
BASE: Row = {
    "url": "http://a.example/1.jpg",
    "caption": GOOD,
    "original_width": 1000,
    "original_height": 1000,
    "original_bytes": 9000,
    "original_format": "JPEG",
    "language_score": 0.9,
    "wanted_language_score": 0.9,
    "clip_score": 0.5,
    "unsafe_score": 0.5,
}
LISTS = {"cc12m_rules": ("wikipedia_words_20", "nouns", "profanity"), "coyo_rules": ("nouns", "profanity")}
"""Word lists that a job names."""
PX = ("original_width", "original_height")
RULES: list[tuple[Row, dict[str, str]]] = [
    ({}, {}),
    ({"original_format": "PNG"}, {"cc12m_rules": "other_format"}),
    ({"original_format": "GIF"}, {"cc12m_rules": "other_format", "laion400m_rules": "other_format"}),
    ({"original_bytes": 5000}, {}),
    ({"original_bytes": 4999}, {"laion400m_rules": "too_few_bytes", "coyo_rules": "too_few_bytes"}),
    (dict.fromkeys(PX, 401), {}),
    ({PX[0]: 400, PX[1]: 401}, {"cc12m_rules": "too_small"}),
    (dict.fromkeys(PX, 200), {"cc12m_rules": "too_small"}),
    (
        dict.fromkeys(PX, 199),
        {"cc12m_rules": "too_small", "coyo_rules": "too_small", "datacomp_basic": "too_small"},
    ),
    ({PX[0]: 2500}, {}),
    ({PX[1]: 2501}, {"cc12m_rules": "too_tall"}),
    ({PX[0]: 3000}, {"cc12m_rules": "too_wide"}),
    ({PX[0]: 3001}, {"cc12m_rules": "too_wide", "coyo_rules": "too_wide", "datacomp_basic": "too_wide"}),
    (
        {"caption": "brown dog"},
        {"cc12m_rules": "too_few_words", "coyo_rules": "too_few_words", "datacomp_basic": "too_few_words"},
    ),
    ({"caption": "a x x dog"}, {"cc12m_rules": "repeated_words"}),
    ({"caption": "a dog x x brown"}, {}),
    ({"caption": "a x x"}, {
        "cc12m_rules": "repeated_words", "coyo_rules": "too_few_characters", "datacomp_basic": "too_few_characters",
    }),
    ({"caption": "xx d"}, {
        "cc12m_rules": "too_few_words", "coyo_rules": "too_few_words", "datacomp_basic": "too_few_words",
        "laion400m_rules": "too_few_characters",
    }),
    ({"caption": "a d x dog"}, {"cc12m_rules": "too_small_share_listed"}),
    ({"caption": "brown dog runs over green field"}, {"cc12m_rules": "no_required_pattern"}),
    ({"caption": "the brown green field"}, dict.fromkeys(["cc12m_rules", "coyo_rules"], "too_few_listed_words")),
    ({"caption": f"{GOOD} Damn!"}, dict.fromkeys(["cc12m_rules", "coyo_rules"], "too_many_listed_words")),
    ({"unsafe_score": 0.5001}, dict.fromkeys(["cc12m_rules", "coyo_rules", "metaclip"], "score_too_high")),
    ({"caption": "the dog" + " x" * 255}, {
        "cc12m_rules": "too_many_words", "coyo_rules": "too_many_words",
    }),
    ({"caption": "the dog" + " x" * 254}, {"cc12m_rules": "repeated_words"}),
    ({"caption": f"a dog x {'g' * 993}"}, {
        "cc12m_rules": "too_small_share_listed", "coyo_rules": "too_many_characters",
    }),
    ({"wanted_language_score": 0.1}, dict.fromkeys(
        ["cc12m_rules", "coyo_rules", "datacomp_basic", "laion400m_rules", "metaclip"], "other_language"
    )),
    ({"language_score": 0.2, "wanted_language_score": 0.2}, {}),
    ({"clip_score": 0.3}, {}),
    ({"clip_score": 0.2999}, {"laion400m_rules": "score_too_low"}),
    ({"clip_score": None}, {"laion400m_rules": "no_score"}),
    ({"url": "http://a.example/1.SVG?a=b"}, {"laion400m_rules": "refused_suffix"}),
    ({"url": "https://a.example/1.gif"}, {"laion400m_rules": "refused_suffix"}),
]  # fmt: skip
"""What a row differs in from BASE, and which jobs refuse it, for what."""


@pytest.mark.parametrize("name", ["cc12m_rules", "laion400m_rules", "coyo_rules", "datacomp_basic", "metaclip"])
def test_a_row_for_each_rule(name: str, tmp_path: Path) -> None:
    lists = {"nouns": ("dog", "dogs", "x"), "profanity": ("damn",), "wikipedia_words_20": KNOWN}
    filters = filters_of(name, *word_lists(tmp_path, {of: lists[of] for of in LISTS.get(name, ())}))
    pairs = pa.Table.from_pylist([BASE | change for change, _ in RULES])
    for column in ("language_score", "wanted_language_score", "clip_score", "unsafe_score"):
        pairs = pairs.set_column(pairs.schema.get_field_index(column), column, pairs[column].cast(pa.float32()))
    found = first_refusals(pairs, filters)
    for (change, expected), reason in zip(RULES, found, strict=True):
        assert reason == expected.get(name), change
    assert name == "metaclip" or len(set(found)) > 4


@pytest.fixture(scope="module")
def crawl() -> pa.Table:
    """The rows of the sample crawl whose picture is good, with what a download would say of it, and its language."""
    listed = pq.read_table(CRAWL / "list.parquet").to_pylist()
    pictures = {}
    for source in SERVED_SOURCES:
        table = pq.read_table(CRAWL / f"{source}.parquet", columns=["path", "image"]).to_pydict()
        pictures.update(
            {f"http://{source}.crawl.example/{path}": image for path, image in zip(*table.values(), strict=True)}
        )
    rows = []
    for row in listed:
        if (image := pictures.get(row["url"])) is not None and row["caption"]:
            with Image.open(io.BytesIO(image)) as picture:
                width, height = picture.size
            sizes = {"original_width": width, "original_height": height, "original_bytes": len(image)}
            rows.append(row | sizes | {"original_format": format_of(image)})
    found = LanguageAnnotation().annotate(pa.Table.from_pylist(rows))
    return found.append_column("unsafe_score", pa.array([0.1] * found.num_rows, pa.float32()))


def datacomp_basic(row: Row) -> str | None:
    if row["language"] != "en":
        return "other_language"
    if len(row["caption"].split()) <= 2:
        return "too_few_words"
    if len(row["caption"]) <= 5:
        return "too_few_characters"
    if min(row["original_width"], row["original_height"]) < 40:
        return "too_small"
    return too_long(row, 3.0)


def coyo(row: Row) -> str | None:
    if row["original_bytes"] < 1500:
        return "too_few_bytes"
    if max(row["original_width"], row["original_height"]) / min(row["original_width"], row["original_height"]) > 3.0:
        return too_long(row, 3.0)
    if min(row["original_width"], row["original_height"]) < 64:
        return "too_small"
    if row["language"] != "en":
        return "other_language"
    if len(row["caption"].split()) < 3:
        return "too_few_words"
    if len(row["caption"]) <= 5:
        return "too_few_characters"
    return about_nouns(row)


def cc12m(row: Row) -> str | None:
    if row["original_format"] != "JPEG":
        return "other_format"
    if not (row["original_width"] > 64 and row["original_height"] > 64):
        return "too_small"
    if (reason := too_long(row, 2.5)) is not None:
        return reason
    words = row["caption"].lower().split()
    if len(words) < 3:
        return "too_few_words"
    if row["language"] != "en":
        return "other_language"
    if 5 * (len(words) - len(set(words))) > len(words):
        return "repeated_words"
    if not set(re.split(r"[^a-z0-9_]+", row["caption"].lower())) & set(DETERMINERS.split()):
        return "no_required_pattern"
    if not set(plain_words(row["caption"])) <= COMMON:
        return "too_small_share_listed"
    return about_nouns(row)


def about_nouns(row: Row) -> str | None:
    words = set(plain_words(row["caption"]))
    if not words & NOUNS:
        return "too_few_listed_words"
    return "too_many_listed_words" if words & PROFANE else None


def too_long(row: Row, aspect: float) -> str | None:
    if (
        max(row["original_width"], row["original_height"]) / min(row["original_width"], row["original_height"])
        <= aspect
    ):
        return None
    return "too_wide" if row["original_width"] > row["original_height"] else "too_tall"


def plain_words(caption: str) -> list[str]:
    return [word for one in caption.lower().split() if (word := re.sub(r"^[\W_]+|[\W_]+$", "", one))]


NOUNS = {
    "flag",
    "face",
    "button",
    "person",
    "cat",
    "dog",
    "house",
    "boat",
    "car",
    "tree",
    "woman",
    "man",
    "fruit",
    "bird",
}
PROFANE = {"old", "fear", "red"}
"""No such word is in the crawl; these stand for them."""
DETERMINERS = """
    a an the this that these those some any no every each either neither both all another such what which whose
    my your his her its our their many much few several most more half one two three four five six seven eight nine ten
"""
COMMON: set[str] = set()


@pytest.mark.parametrize(
    ("rule", "job", "scaled"),
    [
        (datacomp_basic, "datacomp_basic", ["image_size.min_px=40"]),
        (coyo, "coyo_rules", ["image_file.min_bytes=1500", "image_size.min_px=64"]),
        (cc12m, "cc12m_rules", ["image_size.min_px=65"]),
    ],
)
def test_the_sample_crawl_is_judged_as_the_publication_says(
    rule: Callable[[Row], str | None], job: str, scaled: list[str], crawl: pa.Table, tmp_path: Path
) -> None:
    # The crawl's pictures are small, so thresholds of size and of nothing else are scaled.
    rows = crawl.to_pylist()
    said = Counter(word for row in rows for word in plain_words(row["caption"]))
    COMMON.update(word for word, count in said.items() if count >= 3)
    lists = {"nouns": NOUNS, "profanity": PROFANE, "wikipedia_words_20": COMMON}
    scaled = [*scaled, *word_lists(tmp_path, {of: lists[of] for of in LISTS.get(job, ())})]
    found = first_refusals(crawl, filters_of(job, *scaled))
    for row, reason in zip(rows, found, strict=True):
        assert reason == rule(row), row
    counts = Counter(found)
    assert len(rows) > 6000
    assert len(counts) >= 5, counts
    assert min(counts.values()) > 0
    assert counts[None] > 5, counts
