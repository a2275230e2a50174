"""Each filter refuses what it should, for the reason it says, and leaves the rest alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.annotations import ANNOTATIONS, Annotation, LanguageAnnotation
from pipeline.filters import (
    FILTERS,
    CaptionLength,
    CaptionLetters,
    CaptionRepetition,
    ColumnsPresent,
    Filter,
    ImageShape,
    ImageSize,
    LanguageFilter,
)
from pipeline.stages import refusals

ROOT = Path(__file__).parents[2]


def captions(*texts: str) -> pa.Table:
    return pa.table({"caption": pa.array(texts, pa.string())})


def sizes(*pairs: tuple[int, int]) -> pa.Table:
    widths, heights = zip(*pairs, strict=True)
    return pa.table({"original_width": pa.array(widths, pa.int32()), "original_height": pa.array(heights, pa.int32())})


def reasons(one: Filter, pairs: pa.Table) -> list[str | None]:
    return list(one.reasons(pairs).to_pylist())


def test_a_step_is_called_what_its_file_is_called() -> None:
    for kinds, folder in ((FILTERS, "filters"), (ANNOTATIONS, "annotations")):
        files = {path.stem for path in (ROOT / "pipeline" / folder).glob("*.py")} - {"__init__"}
        assert {kind.model_fields["name"].default for kind in kinds} == files


def test_caption_length() -> None:
    one = CaptionLength(min_words=2, max_words=4, min_characters=6, max_characters=12)
    table = captions("dog", "a dog", "a good dog", "a b c d e", "unbelievably long", "", "  ")
    assert reasons(one, table) == [
        "too_few_words", "too_few_characters", None, "too_many_words", "too_many_characters", "too_few_words",
        "too_few_words",
    ]  # fmt: skip


def test_columns_present() -> None:
    table = pa.table({
        "object_tags": pa.array(["cat, mat", None, "", "cat", "cat", "cat"]),
        "regions": pa.array([b"12", b"12", b"12", None, b"", b"12"]),
        "clip_score": pa.array([0.1, 0.2, 0.3, 0.4, 0.5, None]),
    })  # fmt: skip
    one = ColumnsPresent(columns=("object_tags", "regions", "clip_score"))
    assert one.needs == ("object_tags", "regions", "clip_score")
    assert reasons(one, table) == [
        None, "no_object_tags", "no_object_tags", "no_regions", "no_regions", "no_clip_score",
    ]  # fmt: skip


def test_caption_letters() -> None:
    table = captions(
        "a dog", "DSC_00417392.JPG", "04/05/2006", "собака на траве", "कुत्ता", "1st place medal", "f\ufffdr\ufffdg\ufffd"
    )
    assert reasons(CaptionLetters(), table) == [
        None, "too_few_letters", "too_few_letters", None, None, None, "too_few_letters",
    ]  # fmt: skip


def test_caption_repetition() -> None:
    table = captions(
        "hat hat Hat hat", "the cat and the dog and the hat", "dog dog", "a b a b a", "one two three four", ""
    )
    assert reasons(CaptionRepetition(), table) == ["repeated_words", None, None, "repeated_words", None, None]
    assert reasons(CaptionRepetition(max_share=0.6), table)[3] is None


def test_image_size_and_shape() -> None:
    assert reasons(ImageSize(min_px=32), sizes((32, 32), (31, 500), (500, 31))) == [None, "too_small", "too_small"]
    found = reasons(ImageShape(max_aspect=3), sizes((300, 100), (301, 100), (100, 301), (100, 300)))
    assert found == [None, "too_wide", "too_tall", None]


GOOD = ["A hammer.", "umbrella", "red car", "A small boat on the lake near the old harbour in the evening"]
FOREIGN = [
    "Ein kleines Haus am See",
    "une pomme verte sur la table",
    "Красная машина",
    "Un pájaro en la rama del árbol",
]


def test_language_finds_foreign_captions_and_spares_short_english_ones() -> None:
    table = LanguageAnnotation().annotate(captions(*GOOD, *FOREIGN))
    assert table.schema.names == ["caption", *LanguageAnnotation().columns.names]
    assert reasons(LanguageFilter(), table) == [None] * len(GOOD) + ["other_language"] * len(FOREIGN)
    assert table["language"].to_pylist()[len(GOOD) :] == ["de", "fr", "ru", "es"]


def test_a_fixed_score_would_drop_good_captions() -> None:
    scores = LanguageAnnotation().annotate(captions(*GOOD))["language_score"].to_pylist()
    assert sum(score < 0.9 for score in scores) >= 2, (
        "the detector is sure of short captions; the filter can be simpler"
    )


def test_other_languages_can_be_wanted() -> None:
    annotation = LanguageAnnotation(wanted=("de", "en"))
    table = annotation.annotate(captions("Ein kleines Haus am See", "A small house at the lake", "une pomme verte"))
    assert reasons(LanguageFilter(), table) == [None, None, "other_language"]


@pytest.mark.parametrize("short_words", [2, 6])
def test_the_threshold_depends_on_the_length(short_words: int) -> None:
    table = pa.table(
        {
            "caption": ["one two three four"] * 2,
            "language_score": pa.array([0.4, 0.9], pa.float32()),
            "wanted_language_score": pa.array([0.05, 0.05], pa.float32()),
        }
    )
    expected = [None, "other_language"] if short_words == 6 else ["other_language"] * 2
    assert reasons(LanguageFilter(short_words=short_words), table) == expected


def test_the_first_step_that_refuses_has_the_say_and_later_ones_do_not_see_the_row() -> None:
    table = pa.table(
        {
            "image": pa.array([b"1", None, b"3", b"4"], pa.binary()),
            "caption": ["a good dog", "a dog that never came", "dog", "1234 5678"],
            "original_width": pa.array([5, None, 5, 99], pa.int32()),
            "original_height": pa.array([99, None, 99, 99], pa.int32()),
            "reason": pa.array([None, "http_404", None, None], pa.string()),
        }
    )
    steps, why = refusals(table, [CaptionLength(min_words=2), CaptionLetters(), ImageSize(min_px=32)])
    assert steps.to_pylist() == ["image_size", "download", "caption_length", "caption_letters"]
    assert why.to_pylist() == ["too_small", "http_404", "too_few_words", "too_few_letters"]


@pytest.mark.parametrize("kind", FILTERS, ids=lambda kind: kind.__name__)
def test_an_empty_table_is_no_special_case(kind: type[Filter]) -> None:
    annotation: Annotation = LanguageAnnotation()
    empty = annotation.annotate(captions())
    for name in ("original_width", "original_height"):
        empty = empty.append_column(name, pa.array([], pa.int32()))
    needed = {"columns": ("language_score",)} if kind is ColumnsPresent else {}
    assert reasons(kind(**needed), empty) == []
