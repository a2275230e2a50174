"""What the bill of a build reckons with: every number an assumption, with where its default comes from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.jobfile import Number, Settings


class BillSettings(Settings):
    """Assumptions, each with where its default comes from."""

    reachable: Annotated[Number, Field(ge=0, le=1)] | None = None
    """Share of addresses that still give a picture; null: what was last counted for a public list, else 0.85."""
    kept: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """Share of the pictures that filters and duplicates leave: a guess until a build has counted it."""
    cpus: Annotated[int, Field(gt=0)] = 16
    """CPUs that download."""
    pictures_per_s_per_cpu: Annotated[Number, Field(gt=0)] = 40.0
    """img2dataset's CC12M page: 630 a second on 16 cores."""
    kilobytes_per_picture: Annotated[Number, Field(gt=0)] = 34.0
    """Stored, at 256 px and quality 95: CC12M took 331 GB for 9.8 million."""
    price_per_cpu_hour: Annotated[Number, Field(ge=0)] = 0.05
    """In `currency`."""
    price_per_gb_month: Annotated[Number, Field(ge=0)] = 0.023
    """Of storage, in `currency` a gigabyte and month."""
    price_per_1000_puts: Annotated[Number, Field(ge=0)] = 0.005
    """Of S3, in `currency`."""
    price_per_1000_gets: Annotated[Number, Field(ge=0)] = 0.0004
    """Of S3, in `currency`."""
    annotation_pictures_per_s: dict[str, Annotated[Number, Field(gt=0)]] = Field(default_factory=dict)
    """Pictures a second of an annotation, by its name, on all its workers together."""
    currency: str = "USD"
    """What the prices are in."""
