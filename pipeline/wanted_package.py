"""Refuses an annotation whose package is not installed, in one line and before anything is fetched."""

from __future__ import annotations

from importlib.util import find_spec

from pipeline.jobfile import JobError


def expect_package(annotation: str, module: str) -> None:
    """JobError if the module that the annotation of this name runs on cannot be imported here."""
    if find_spec(module) is None:
        package = module.replace("_", "-")
        raise JobError(f"annotations.{annotation}: expected the package {package}; pip install 'hiclip[annotations]'")
