"""Whether a folder holds the whole dataset of a job already, or the dataset of another one."""

from __future__ import annotations

from pydantic import ValidationError

from pipeline.build_job import DECIDES_NOTHING, BuildJob
from pipeline.jobfile import resolved
from pipeline.list_files import list_sha256
from pipeline.manifest import MANIFEST, DatasetError, Manifest, read_manifest
from pipeline.storage import Folder, folder


def finished_build(target: Folder, job: BuildJob) -> Manifest | None:
    """The manifest, where this very job has built the dataset at `target`; None where there is no whole dataset.

    DatasetError when another job has: its dataset is neither taken for ours nor overwritten.
    """
    if not target.exists(MANIFEST):
        return None
    manifest = read_manifest(target.root)
    try:
        builder = BuildJob.model_validate(manifest.job)
    except ValidationError:
        builder = None  # an older version's job
    if builder is not None and builder.fingerprint() == job.fingerprint():
        _check_lists(job, manifest)
        _check_all_there(target, manifest)
        return manifest
    ours = resolved(job)
    keys = ", ".join(key for key in ours if key not in DECIDES_NOTHING and ours[key] != manifest.job.get(key))
    raise DatasetError(
        f"{target.root}: holds the dataset of another job ('{manifest.name}', which differs in: {keys}); "
        "give another out, or remove that folder"
    )


def _check_lists(job: BuildJob, manifest: Manifest) -> None:
    """A list that has been moved away since is no mistake; one with other content is."""
    for one in job.lists:
        if folder(one.path).exists() and list_sha256(one) != manifest.lists.get(one.path):
            raise DatasetError(
                f"{one.path}: this list has changed since the dataset was built from it; "
                "give another out, or remove the old dataset"
            )


def _check_all_there(target: Folder, manifest: Manifest) -> None:
    there = set(target.names("shards/"))
    missing = [shard.path for shard in manifest.shards if shard.path not in there]
    if missing:
        raise DatasetError(
            f"{target.join(missing[0])}: the manifest lists this shard, and it is not there; "
            f"remove {target.join(MANIFEST)} to build again from the snapshot"
        )
