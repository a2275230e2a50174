"""Makes the sample crawl beside it from published packages: captioned pictures as parquet, the URL list with its dirt.

    PYTHONPATH=. python jobs/walk/crawl/make_crawl.py PACKAGES_FOLDER

fetches the packages below into PACKAGES_FOLDER with `npm pack` and `apt-get download` (what lies there already is not
fetched again) and rewrites the parquet files. Needs npm, apt-get and dpkg-deb, and beside the project's own packages
cairosvg==2.9.1. Same packages and same pillow, pyarrow and cairosvg give the same bytes.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from clipart_sources import openclipart, translations_of, tuxpaint
from crawl_pictures import Row
from emoji_sources import emoji, openmoji

from pipeline.sample_dirt import DIRT, Dirt, Picture

HERE = Path(__file__).resolve().parent
NPM_PACKAGES = {
    "emoji-datasource-google": "16.0.0",
    "emoji-datasource-twitter": "16.0.0",
    "emojibase-data": "17.0.0",
    "openmoji": "17.0.0",
}
DEBIAN_PACKAGES = {
    "openclipart-png": "1:0.18+dfsg-19",
    "openclipart-svg": "1:0.18+dfsg-19",
    "tuxpaint-stamps-default": "2022.06.04-1",
}
PICTURES = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("image", pa.binary()),
        pa.field("caption", pa.string()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("concept", pa.string()),
        pa.field("group", pa.string()),
        pa.field("subgroup", pa.string()),
        pa.field("source", pa.string()),
        pa.field("licence", pa.string()),
    ]
)
URL_LIST = pa.schema([pa.field(name, pa.string()) for name in ("url", "caption", "source")])


def main(packages: Path) -> None:
    """Fetch, choose, write."""
    fetch(packages)
    sources = {
        "noto": list(emoji(packages, "google")),
        "twemoji": list(emoji(packages, "twitter")),
        "openclipart": list(openclipart(packages)),
        "tuxpaint": list(tuxpaint(packages)),
    }
    write_pictures("openmoji", list(openmoji(packages)))
    for source, rows in sources.items():
        write_pictures(source, rows)
    translations = translations_of(packages, [row.path for row in sources["tuxpaint"]])
    write_list(url_list(sources, translations))


def fetch(packages: Path) -> None:
    """Download and unpack every package that is not there yet, each into its own folder."""
    packages.mkdir(parents=True, exist_ok=True)
    for name, version in NPM_PACKAGES.items():
        if not (packages / name).exists():
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=packages, check=True)
            (packages / name).mkdir()
            subprocess.run(["tar", "xzf", f"{name}-{version}.tgz", "-C", name], cwd=packages, check=True)
    for name, version in DEBIAN_PACKAGES.items():
        if not (packages / name).exists():
            subprocess.run(["apt-get", "download", "-q", f"{name}={version}"], cwd=packages, check=True)
            (file,) = packages.glob(f"{name}_*.deb")
            subprocess.run(["dpkg-deb", "-x", file.name, name], cwd=packages, check=True)


def write_pictures(source: str, rows: Sequence[Row]) -> None:
    """One source's pictures, ordered by path."""
    ordered = [vars(row) for row in sorted(rows, key=lambda row: row.path)]
    write(pa.Table.from_pylist(ordered, PICTURES), HERE / f"{source}.parquet")


def write_list(rows: Iterable[tuple[str | None, str | None, str]]) -> None:
    """The URL list, ordered by hash: as in a list of the web, neighbours have nothing in common."""
    ordered = sorted(rows, key=lambda row: hashlib.sha256(repr(row).encode()).digest())
    columns = {name: [row[place] for row in ordered] for place, name in enumerate(URL_LIST.names)}
    write(pa.Table.from_pydict(columns, URL_LIST), HERE / "list.parquet")


def write(table: pa.Table, file: Path) -> None:
    """Write, then rename."""
    unfinished = file.with_suffix(".unfinished")
    pq.write_table(table, unfinished, compression="zstd", row_group_size=512)
    unfinished.rename(file)
    print(f"{file.name}: {table.num_rows} rows, {file.stat().st_size / 1e6:.2f} MB")


def url_list(
    sources: dict[str, list[Row]], translations: dict[str, tuple[str, ...]]
) -> Iterator[tuple[str | None, str | None, str]]:
    """Every good picture at its own address, and the dirt."""
    drawings = shuffled(
        Picture("openclipart", row.path, row.caption, tuple(row.captions)) for row in sources["openclipart"]
    )
    stamps = shuffled(
        Picture("tuxpaint", row.path, row.caption, tuple(row.captions), translations[row.path])
        for row in sources["tuxpaint"]
        if translations[row.path]
    )
    taken = set()
    for dirt in DIRT:
        for picture in chosen(dirt, drawings, stamps):
            if dirt.takes_picture:
                taken.add((picture.source, picture.path))
            yield from ((url, caption, "dirt") for url, caption in dirt.rows(picture))
    for source, rows in sources.items():
        for row in rows:
            if (source, row.path) not in taken:
                yield f"http://{source}.crawl.example/{row.path}", row.caption, source


def shuffled(pictures: Iterable[Picture]) -> list[Picture]:
    """The pictures in an order that has nothing to do with their folders, always the same."""
    return sorted(pictures, key=lambda picture: hashlib.sha256(f"dirt {picture.path}".encode()).digest())


def chosen(dirt: Dirt, drawings: list[Picture], stamps: list[Picture]) -> list[Picture]:
    """The pictures for one kind of dirt, taken off their list: no picture has two kinds."""
    fitting = [picture for picture in (stamps if dirt.name == "caption_language" else drawings) if fits(dirt, picture)]
    pictures = fitting[: dirt.pictures]
    assert len(pictures) == dirt.pictures, dirt.name
    for picture in pictures:
        (stamps if dirt.name == "caption_language" else drawings).remove(picture)
    return pictures


def fits(dirt: Dirt, picture: Picture) -> bool:
    """A second caption takes a picture with two wordings."""
    return dirt.name not in ("two_captions", "near_copy") or len(picture.wordings) > 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: PYTHONPATH=. python jobs/walk/crawl/make_crawl.py PACKAGES_FOLDER")
    main(Path(sys.argv[1]))
