"""The published rows against themselves: averages, sums and cells that stand in two tables, so that no slip lives."""

from __future__ import annotations

import pytest

from hiclip.evaluation.averages import ELEVEN
from hiclip.evaluation.measure import METRICS
from hiclip.evaluation.published_rows import PublishedRow, chosen_rows, published_rows, rows_with
from hiclip.evaluation.retrieval import CUTS
from hiclip.evaluation.table import TITLES
from pipeline.jobfile import InputError

_RECALLS = [f"{way}_r{cut}" for way in ("image_to_text", "text_to_image") for cut in CUTS]
_ROWS = published_rows()
PROBED = tuple(f"linear_probe/{name}" for name in ELEVEN if name != "imagenet")


def _name(row: PublishedRow) -> str:
    return f"{row.method}-{row.encoder}-{row.data}-{row.table.split(',')[0]}"


def _averaged(sets: tuple[str, ...], metric: str) -> list[PublishedRow]:
    return [row for row in _ROWS if all(row.values.get(name, {}).get(metric) is not None for name in sets)]


@pytest.mark.parametrize("row", _averaged(ELEVEN, "top1"), ids=_name)
def test_the_average_of_eleven_is_that_of_the_cells(row: PublishedRow) -> None:
    mean = sum(row.values[name]["top1"] or 0 for name in ELEVEN) / len(ELEVEN)
    # All averages are those of the printed cells, to the last digit.
    assert row.values["eleven_sets"]["top1"] == pytest.approx(mean, abs=0.051)


@pytest.mark.parametrize("row", _averaged(PROBED, "top1"), ids=_name)
def test_the_average_of_the_linear_probe_is_that_of_the_cells(row: PublishedRow) -> None:
    mean = sum(row.values[name]["top1"] or 0 for name in PROBED) / 10
    assert row.values["linear_probe/ten_sets"]["top1"] == pytest.approx(mean, abs=0.051)


@pytest.mark.parametrize(
    "row", [row for row in _ROWS if row.values.get("coco_5k", {}).get("rsum") and "Table 3" not in row.table], ids=_name
)
def test_rsum_is_the_sum_of_the_recalls(row: PublishedRow) -> None:
    cells = row.values["coco_5k"]
    parts = [cells[recall] for recall in _RECALLS]
    if None in parts:
        assert row.note
        return
    assert cells["rsum"] == pytest.approx(sum(part or 0 for part in parts), abs=0.01)
    for first, second, third in (parts[:3], parts[3:]):
        assert 0 < (first or 0) < (second or 0) < (third or 0) < 100


def test_enough_rows_are_checked() -> None:
    assert len(_averaged(ELEVEN, "top1")) == 8
    assert len(_averaged(PROBED, "top1")) == 11
    assert sum(bool(row.values.get("coco_5k", {}).get("rsum")) for row in _ROWS) == 8 + 12 + 3


def test_a_head_measured_elsewhere_is_told() -> None:
    """VQA's published numbers are of test-dev, whose answers are secret; ours are of val2014."""
    asked = [row for row in _ROWS if "vqa_v2-finetune" in row.values]
    assert len(asked) == 8 + 12
    assert all("test-dev" in row.table for row in asked)


def test_a_cell_that_stands_in_two_tables_of_a_paper_is_the_same() -> None:
    known: dict[tuple[object, ...], float] = {}
    twice = 0
    for row in _ROWS:
        for name, metrics in row.values.items():
            for metric, value in metrics.items():
                key = (row.source, row.method, row.data, row.encoder, name, metric)
                if value is not None:
                    twice += key in known
                    assert known.setdefault(key, value) == value, key
    assert twice >= 40


def test_the_benchmark_of_declip_is_what_the_paper_quotes() -> None:
    """HiCLIP took its rivals' ImageNet numbers on YFCC15M from there; PyramidCLIP its baselines."""
    cells = {(row.source[:6], row.method, row.encoder): row.values["imagenet"]["top1"] for row in _ROWS
             if row.data == "YFCC15M-V2" and row.values.get("imagenet", {}).get("top1")}  # fmt: skip
    for method in ("CLIP", "SLIP", "FILIP", "DeCLIP", "DeFILIP"):
        assert cells["HiCLIP", method, "ViT-B/32"] == cells["DeCLIP", method, "ViT-B/32"]
    for encoder in ("ViT-B/32", "ResNet-50"):
        assert cells["Pyrami", "CLIP", encoder] == cells["DeCLIP", "CLIP", encoder]


def test_metrics_are_ours_and_numbers_are_shares_in_percent() -> None:
    for row in _ROWS:
        for metrics in row.values.values():
            assert set(metrics) <= {*METRICS, *TITLES}
            assert all(
                value is None or 0 < value < (600 if metric == "rsum" else 100) for metric, value in metrics.items()
            )
        unread = any(value is None for metrics in row.values.values() for value in metrics.values())
        assert not unread or row.note, f"{_name(row)}: a cell is null and no note says why"


def test_rows_are_chosen_by_encoder_and_data_and_joined_by_source() -> None:
    rows = chosen_rows("vit-b/32", "yfcc15m")
    assert {row.data for row in rows} == {"YFCC15M-V1", "YFCC15M-V2"}
    columns = [("imagenet", "top1"), ("coco_5k", "rsum"), ("coco_5k", "loss")]
    found = rows_with(rows, columns)
    hiclip = [row for row in found if row.method == "HiCLIP"]
    assert len(hiclip) == 1
    assert (hiclip[0].values["imagenet"]["top1"], hiclip[0].values["coco_5k"]["rsum"]) == (40.5, 285.1)
    assert sum(row.method == "DeCLIP" for row in found) == 1, "the benchmark repeats the paper's number"
    assert not rows_with(rows, [("openmoji", "top1")])
    with pytest.raises(InputError, match=r"--published: expected one of .*ViT-B/32 30M.*, came ViT-B/32 LAION"):
        chosen_rows("ViT-B/32", "LAION")
