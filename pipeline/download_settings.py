"""How pictures are fetched and stored: the part of a build job that decides what the snapshot holds."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.jobfile import Number, Settings

SAMPLE_CRAWL = "sample_crawl"
"""In `connect_to`: the loopback server of the sample crawl, which runs as long as the build."""

Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]


class DownloadSettings(Settings):
    """Passed to img2dataset's downloader and resizer, with the limits that it lacks."""

    timeout_s: Annotated[Number, Field(gt=0)] = 10.0
    """For one whole fetch: names, redirects, head and body."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Further tries of an address that failed in a way that may pass: no answer, 429, 5xx, a cut connection."""
    first_pause_s: Annotated[Number, Field(ge=0)] = 2.0
    """Pause of a failed address before its second try; it doubles with each."""
    max_pause_s: Annotated[Number, Field(ge=0)] = 60.0
    """Longest pause of an address, also where the server's Retry-After asks for more."""
    max_bytes: Annotated[int, Field(gt=0)] = 32 * 2**20
    """Of one answer; the rest is not read."""
    max_pixels: Annotated[int, Field(gt=0)] = 100_000_000
    """Width times height, read from the header before anything is decoded."""
    max_redirects: Annotated[int, Field(ge=0)] = 5
    """Of one address; each is checked as the address itself is."""
    user_agent: Annotated[str, Field(pattern=r"^[!-~][ -~]*$")] = "hiclip/0.1 (dataset build)"
    """Sent with every request: say who you are and where you can be reached."""
    honour_opt_out: bool = True
    """Refuse pictures whose X-Robots-Tag says one of `opt_out_directives` to all or to us."""
    opt_out_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex", "none")
    """Words of X-Robots-Tag that refuse a picture: img2dataset's four and `none`, which means noindex and nofollow."""
    connect_to: dict[str, str] = Field(default_factory=dict)
    """Host name with wildcards to `HOST:PORT`, or to `sample_crawl`; the addresses in the dataset stay as they are."""
    allow_private: tuple[str, ...] = ()
    """Networks (10.1.0.0/16) that may be fetched from although they are not public."""

    image_px: Annotated[int, Field(gt=0)] = 256
    """Side that `resize` means, of the stored picture."""
    resize: Literal["keep_ratio", "keep_ratio_largest", "center_crop", "border", "no"] = "keep_ratio"
    """img2dataset's modes: shorter side, longer side, square cut, square padded with white, as it is."""
    enlarge: bool = False
    """Whether smaller pictures are blown up."""
    downscale_interpolation: Interpolation = "area"
    """How a picture is made smaller."""
    upscale_interpolation: Interpolation = "lanczos"
    """How a picture is made larger, where `enlarge` says so."""
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: Annotated[int, Field(ge=0, le=100)] = 95
    """1..100; for png the effort of compression, 0..9."""

    rows_per_task: Annotated[int, Field(gt=0)] = 2048
    """Rows of one Ray task and one snapshot shard: what a killed build repeats."""
    connections: Annotated[int, Field(gt=0)] = 32
    """Fetches of one task at a time."""
    connections_per_host: Annotated[int, Field(gt=0)] = 8
    """To one host at a time, over all tasks of the cluster; raise it for a host that has agreed to more."""
    cpus_per_task: Annotated[Number, Field(gt=0)] = 0.5
    """Below 1, because a task spends part of its life waiting for the slowest server."""
    tasks_in_flight: Annotated[int, Field(gt=0)] | None = None
    """Tasks that Ray knows of at a time; null: as many as the CPUs can run and two more."""

    @field_validator("allow_private")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network)
        return value

    @field_validator("connect_to")
    @classmethod
    def _are_places(cls, value: dict[str, str]) -> dict[str, str]:
        for place in value.values():
            if place != SAMPLE_CRAWL and not place.rpartition(":")[2].isdigit():
                raise ValueError(f"expected HOST:PORT or {SAMPLE_CRAWL}, came '{place}'")
        return value

    @model_validator(mode="after")
    def _quality_fits_the_format(self) -> DownloadSettings:
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError(f"encode_quality: expected 0..9 with encode_format png, came {self.encode_quality}")
        return self

    @property
    def user_agent_token(self) -> str:
        """The name that an X-Robots-Tag would address us by."""
        return self.user_agent.partition("/")[0].partition(" ")[0].strip().lower()

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what is stored; the others only say how fast."""
        pace = {"rows_per_task", "connections", "connections_per_host", "cpus_per_task", "tasks_in_flight"}
        return self.model_dump(mode="json", exclude=pace)

    def window(self, cpus: float) -> int:
        """Tasks to hand to a Ray of `cpus` CPUs at a time."""
        return self.tasks_in_flight or int(cpus / self.cpus_per_task) + 2
