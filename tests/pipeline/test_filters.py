"""Each filter refuses what it should, for the reason it says, and leaves the rest alone."""

from __future__ import annotations

import gzip
import hashlib
import math
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.annotations import ANNOTATIONS, Annotation, LanguageAnnotation
from pipeline.filters import (
    FILTERS,
    Address,
    AnyFilter,
    CaptionLength,
    CaptionLetters,
    CaptionPattern,
    CaptionRepetition,
    CaptionWords,
    ColumnsPresent,
    Filter,
    ImageFile,
    ImageShape,
    ImageSize,
    LanguageFilter,
    Score,
)
from pipeline.filters.image_file import Format
from pipeline.filters.score import threshold_place
from pipeline.judge import refusals
from pipeline.manifest import DatasetError
from pipeline.pictures import ACCEPTED
from pipeline.storage import StorageError

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


def test_caption_length_may_have_no_upper_bound() -> None:
    table = captions("dog " * 300, "d" * 1001, "dog")
    assert reasons(CaptionLength(), table) == ["too_many_words", "too_many_characters", None]
    assert reasons(CaptionLength(max_words=None, max_characters=None, min_characters=4), table) == [
        None, None, "too_few_characters",
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


def test_repetition_at_the_threshold_is_no_repetition_too_many() -> None:
    ten = "a b c d e f g"
    table = captions(f"{ten} a b c", f"{ten} a a a a", f"{ten} H A B")  # 3, 4 and 2 of 10 or 11 words again
    assert reasons(CaptionRepetition(max_share=0.3), table) == [None, "repeated_words", None]
    assert reasons(CaptionRepetition(max_share=0.2), table) == ["repeated_words", "repeated_words", None]
    assert reasons(CaptionRepetition(max_share=0.2), captions("a b c d a", "a b c d A a")) == [None, "repeated_words"]


def test_image_size_and_shape() -> None:
    assert reasons(ImageSize(min_px=32), sizes((32, 32), (31, 500), (500, 31))) == [None, "too_small", "too_small"]
    found = reasons(ImageShape(max_aspect=3), sizes((300, 100), (301, 100), (100, 301), (100, 300)))
    assert found == [None, "too_wide", "too_tall", None]
    found = reasons(ImageShape(max_aspect=2.2), sizes((220, 100), (100, 220), (100, 221), (221, 100), (22, 10)))
    assert found == [None, None, "too_tall", "too_wide", None]
    found = reasons(ImageSize(min_px=401, max_px=4000), sizes((401, 4000), (400, 401), (4001, 500), (500, 4001)))
    assert found == [None, "too_small", "too_large", "too_large"]


def scores(*values: float | None, kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"clip_score": pa.array(values, kind or pa.float32())})


def test_scores_at_and_beside_the_threshold() -> None:
    # Of these decimals 0.7 becomes less in 32 bits and 0.3 more, so the bound has to be rounded as the score was.
    for bound in (0.3, 0.7, 0.28):
        table = scores(bound, math.nextafter(bound, 0) - 1e-7, bound + 1e-6, None, math.nan, -bound)
        low = ["score_too_low", None, "no_score", "no_score", "score_too_low"]
        assert reasons(Score(column="clip_score", min=bound), table) == [None, *low]
        high = [None, "score_too_high", "no_score", "no_score", None]
        assert reasons(Score(column="clip_score", max=bound), table) == [None, *high]
        assert reasons(Score(column="clip_score", max=bound, keep_null=True), table)[3:5] == [None, None]
    both = Score(column="clip_score", min=0.2, max=0.4)
    assert reasons(both, scores(0.1, 0.2, 0.4, 0.5)) == ["score_too_low", None, None, "score_too_high"]
    assert reasons(both, scores(0, 1, None, kind=pa.int64())) == ["score_too_low", "score_too_high", "no_score"]
    assert (both.name, both.step, both.needs, both.quantile) == ("score", "score_clip_score", ("clip_score",), None)
    with pytest.raises(DatasetError, match="expected numbers in the column clip_score, found string"):
        both.reasons(pa.table({"clip_score": ["0.3"]}))


def test_the_top_share_is_the_one_of_datacomp() -> None:
    values = [0.5, 0.1, 0.4, 0.4, 0.2, 0.9, 0.3, 0.4, 0.8, 0.7]
    one = Score(column="clip_score", top_share=0.3)
    assert one.quantile == ("clip_score", 0.3)
    # DataComp: threshold = -sort(-values)[int(len * share)], kept are those of at least the threshold.
    threshold = sorted(values, reverse=True)[threshold_place(0.3, len(values))]
    assert threshold == 0.5
    known = one.with_threshold(threshold)
    assert known.quantile is None
    kept = [value for value, why in zip(values, reasons(known, scores(*values)), strict=True) if why is None]
    assert kept == [0.5, 0.9, 0.8, 0.7]
    tied = sorted(values, reverse=True)[threshold_place(0.5, len(values))]
    assert reasons(one.with_threshold(tied), scores(*values)).count(None) == 7, "pairs that equal the threshold stay"
    assert [threshold_place(share, 10) for share in (0.01, 0.99, 1.0)] == [0, 9, 9]
    assert reasons(one.with_threshold(None), scores(None, None)) == ["no_score", "no_score"]
    with pytest.raises(AssertionError, match="was not looked up"):
        one.reasons(scores(0.1))


def test_image_file() -> None:
    table = pa.table({
        "original_bytes": pa.array([5000, 4999, 9000, 9000, 9000, 10], pa.int64()),
        "original_format": ["JPEG", "JPEG", "PNG", "GIF", None, "GIF"],
    })  # fmt: skip
    assert reasons(ImageFile(min_bytes=5000, formats=("JPEG", "PNG")), table) == [
        None, "too_few_bytes", None, "other_format", "other_format", "too_few_bytes",
    ]  # fmt: skip
    assert reasons(ImageFile(min_bytes=4999), table) == [None] * 5 + ["too_few_bytes"]
    assert get_args(Format) == ACCEPTED


def test_caption_pattern() -> None:
    table = captions("A dog", "a dog", "A dog, click to enlarge", "A dog at www.example.com", "CLICK TO ENLARGE a dog")
    one = CaptionPattern(refuse=(r"click to \w+", r"\bwww\."), require=("^[A-Z]", "dog"))
    assert reasons(one, table) == [None, "no_required_pattern", "refused_pattern", "refused_pattern", None]
    blind = one.model_copy(update={"ignore_case": True})
    assert reasons(blind, table) == [None, None, "refused_pattern", "refused_pattern", "refused_pattern"]
    assert reasons(CaptionPattern(require=(r"\p{Greek}",)), captions("σκύλος", "dog")) == [None, "no_required_pattern"]


def words(place: Path, text: str, **settings: Any) -> CaptionWords:
    place.write_bytes(gzip.compress(text.encode()) if place.suffix == ".gz" else text.encode())
    return CaptionWords(list=str(place), **settings)


def test_caption_words_are_counted_without_their_punctuation(tmp_path: Path) -> None:
    few = words(tmp_path / "nouns.txt", "\ufeffDog\r\n\n cat \nCafe\u0301\nwell-known\n", min_words=2)
    table = captions(
        "A dog, a CAT!",
        "“Dog” (dog)",
        "a dog",
        "hotdog cats",
        "café & Dog.",
        "well-known dog",
        "well known dog",
        "",
        "- -",
    )
    assert [why is None for why in reasons(few, table)] == [True, True, False, False, True, True, False, False, False]
    assert few.step == "caption_words_nouns"
    at = few.model_copy(update={"min_words": 1, "max_words": 1})
    assert reasons(at, captions("dog", "dog dog", "bird")) == [None, "too_many_listed_words", "too_few_listed_words"]
    share = words(tmp_path / "known.txt.gz", "a\ndog\nand\n", min_share=0.75)
    assert share.step == "caption_words_known"
    table = captions("a dog and -- X!", "a dog and xx yy", "X", "", "--")
    assert reasons(share, table) == [None, *["too_small_share_listed"] * 4]
    assert reasons(share.model_copy(update={"min_share": 1.0}), captions("A dog, and: a dog", "a dog x"))[0] is None


def test_phrases_are_found_within_one_caption(tmp_path: Path) -> None:
    none = words(tmp_path / "profane.txt", "damn\nson of a gun\nhot dog\nhot dog stand\n", max_words=0)
    table = captions(
        "a hot", "dog", "Hot, dog!", "hot dogs", "you son of a", "gun", "Son of a gun", "damned", "damn", ""
    )
    bad = {2, 6, 8}
    assert [why is not None for why in reasons(none, table)] == [place in bad for place in range(10)]
    twice = none.model_copy(update={"max_words": 1})
    assert reasons(twice, captions("hot dog", "hot dog stand")) == [None, "too_many_listed_words"]
    # Only single words are a share of the words.
    share = none.model_copy(update={"max_words": None, "min_share": 0.5})
    assert reasons(share, captions("hot dog", "damn dog")) == ["too_small_share_listed", None]


def test_a_word_list_is_looked_at_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = words(tmp_path / "words.txt", "dog\n", min_words=1)
    relative = one.model_copy(update={"list": "words.txt", "sha256": hashlib.sha256(b"dog\n").hexdigest()})
    assert relative.ready().list == one.list
    with pytest.raises(DatasetError, match=r"words\.txt: expected the file with sha256 0{16}\.\.\., found"):
        one.model_copy(update={"sha256": "0" * 64}).ready()
    with pytest.raises(StorageError, match=r"away\.txt: cannot be read: there is no such file"):
        one.model_copy(update={"list": "away.txt"}).ready()
    for name, content, why in (
        ("empty.txt", b"\n -- \n", "found no word"),
        ("latin.txt", b"caf\xe9\n", "a word a line"),
        ("no.gz", b"dog", "a word a line"),
        ("cut.gz", gzip.compress(b"dog" * 99)[:-9], "a word a line"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=why) as caught:
            one.model_copy(update={"list": name}).ready()
        assert "\n" not in str(caught.value)


def test_address() -> None:
    one = Address(refuse_hosts=("Shop.example", "*.ads.example"), refuse_suffixes=(".svg", ".gif"))
    expected = {
        "http://shop.example/a.jpg": "refused_host",
        "https://user:pass@SHOP.example.:8080?a": "refused_host",
        "http://my.shop.example/a.jpg": None,
        "http://myshop.example/": None,
        "http://ads.example/a.jpg": None,
        "http://x.ads.example/a.svg": "refused_host",
        "http://y.x.ads.example": "refused_host",
        "http://xads.example/": None,
        "http://a.example/?to=http://shop.example/": None,
        "http://shop.example@a.example/": None,
        "http://a.example/a.SVG": "refused_suffix",
        "http://a.example/a.gif?size=3#x": "refused_suffix",
        "http://a.example/a.gif/b": None,
        "http://a.example/agif": None,
        "http://a.example/a?b=.gif": None,
        "http://a.gif": None,
        "http://[::1]:80/a.svg": "refused_suffix",
    }
    assert dict(zip(expected, reasons(one, pa.table({"url": list(expected)})), strict=True)) == expected


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"score": {"column": "a"}}, "min, max, top_share: expected one of them"),
        ({"score": {"column": "a", "top_share": 0.3, "max": 1}}, "top_share: expected neither min nor max"),
        ({"score": {"column": "a", "min": 2, "max": 1}}, "min, max: expected a min of at most max, came 2 and 1"),
        ({"score": {"column": "a", "min": math.nan}}, "finite number"),
        ({"score": {"column": "a", "top_share": 0}}, "greater than 0"),
        ({"caption_pattern": {}}, "refuse, require: expected at least one pattern"),
        ({"caption_pattern": {"refuse": ["a(b"]}}, "expected regular expressions of RE2, came 'a(b' (missing ): a(b)"),
        ({"caption_pattern": {"require": ["(?=a)"]}}, "came '(?=a)' (invalid perl operator"),
        ({"caption_words": {"list": "a"}}, "min_words, max_words, min_share: expected at least one"),
        ({"caption_words": {"list": "a", "min_words": 2, "max_words": 1}}, "came 2 and 1"),
        ({"address": {}}, "refuse_hosts, refuse_suffixes: expected at least one"),
        ({"address": {"refuse_hosts": ["http://a.example"]}}, "example.com or *.example.com, came 'http://a.example'"),
        ({"address": {"refuse_hosts": ["a.*.example"]}}, "example.com or *.example.com, came 'a.*.example'"),
        ({"address": {"refuse_suffixes": ["svg"]}}, "should match pattern"),
        ({"image_file": {"formats": ["SVG"]}}, "'JPEG', 'PNG', 'WEBP', 'GIF' or 'BMP'"),
        ({"image_size": {"min_px": 9, "max_px": 8}}, "came 9 and 8"),
    ],
)
def test_what_no_filter_can_be_is_said_while_the_job_is_read(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter[Filter](AnyFilter).validate_python(filters)
    assert message in str(caught.value)


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


def test_language_as_the_public_sets_judge_it() -> None:
    table = pa.table({
        "caption": ["one", "one two three four five six seven eight"] * 2,
        "language_score": pa.array([0.3, 0.3, 0.4, 0.4], pa.float32()),
        "wanted_language_score": pa.array([0.3, 0.3, 0.3, 0.3], pa.float32()),
    })  # fmt: skip
    one = LanguageFilter(rule="likeliest")
    assert reasons(one, table) == [None, None, "other_language", "other_language"]
    assert reasons(one, LanguageAnnotation().annotate(captions(*FOREIGN))) == ["other_language"] * len(FOREIGN)


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


NEEDED: dict[type[Any], dict[str, Any]] = {
    Address: {"refuse_hosts": ("*.a.example",), "refuse_suffixes": (".svg",)},
    CaptionPattern: {"refuse": ("a",), "require": ("b",)},
    CaptionWords: {"list": "words.txt", "min_words": 1, "max_words": 2, "min_share": 0.1},
    ColumnsPresent: {"columns": ("language_score",)},
    ImageFile: {"formats": ("JPEG",)},
    Score: {"column": "language_score", "min": 0.1, "max": 0.2},
}
"""What a filter must be told."""


@pytest.mark.parametrize("kind", FILTERS, ids=lambda kind: kind.__name__)
def test_an_empty_table_is_no_special_case(kind: type[Filter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("dog\nhot dog")
    annotation: Annotation = LanguageAnnotation()
    empty = annotation.annotate(captions())
    for name in ("original_width", "original_height", "original_bytes"):
        empty = empty.append_column(name, pa.array([], pa.int32()))
    for name in ("original_format", "url"):
        empty = empty.append_column(name, pa.array([], pa.string()))
    one = kind(**NEEDED.get(kind, {})).ready()
    assert one.step.startswith(one.name)
    assert one.quantile is None
    found = one.with_threshold(None).reasons(empty)
    assert (found.type, len(found)) == (pa.string(), 0)
