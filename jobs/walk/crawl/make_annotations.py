"""Makes `annotations.parquet` beside it: object tags and a summary for every picture of the crawl, from its labels.

    PYTHONPATH=. python jobs/walk/crawl/make_annotations.py

PyramidCLIP's come from a detector and a summariser; the crawl's pictures bring tags of their own. Tags: the keywords of
the emoji standard, or the folders that a clip art lies in. Summary: the bare label.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
SOURCES = ("noto", "twemoji", "openclipart", "tuxpaint")
SCHEMA = pa.schema([pa.field(name, pa.string()) for name in ("url", "object_tags", "caption_summary")])


def tags(row: dict[str, Any]) -> str:
    """Comma-separated keywords of a picture, as far as its source has any."""
    keywords = next((text for text in row["captions"] if ", " in text), None)
    folders = [row["group"], *row["subgroup"].split("/")]
    return keywords or ", ".join(dict.fromkeys(part.replace("_", " ") for part in folders))


def picture_of(url: str) -> str:
    """SOURCE/PATH of the picture behind http://SOURCE.crawl.example/PATH or .../KIND_OF_DIRT/SOURCE/PATH."""
    host, _, path = url.removeprefix("http://").partition("?")[0].partition("/")
    return path.partition("/")[2] if host == "dirt.crawl.example" else f"{host.partition('.')[0]}/{path}"


def main() -> None:
    """A row for every address of the list that leads to a picture of the training sources, good ones and dirt."""
    known = {
        f"{source}/{row['path']}": {"object_tags": tags(row), "caption_summary": row["concept"]}
        for source in SOURCES
        for row in pq.read_table(HERE / f"{source}.parquet").drop_columns(["image"]).to_pylist()
    }
    urls = set(pq.read_table(HERE / "list.parquet")["url"].drop_null().to_pylist())
    rows = [{"url": url, **known[place]} for url in sorted(urls) if (place := picture_of(url)) in known]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), HERE / "annotations.parquet", compression="zstd")


if __name__ == "__main__":
    main()
