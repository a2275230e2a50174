"""Lets a rung begin where another of its trunk already is: the checkpoint before their cool-downs part is both's.

That the two are the same run up to there is arithmetic (`hiclip.scaling.ladder`), and a test compares their weights bit
for bit. A rung whose trunk failed simply starts at its own beginning.
"""

from __future__ import annotations

import json

from hiclip.scaling.ladder import Ladder, Rung
from hiclip.training.checkpoint import adopt_checkpoint, checkpoints, newest_checkpoint
from hiclip.training.pretrain_job import PretrainJob
from pipeline.jobfile import resolved_yaml
from pipeline.storage import Folder


def run_folder(rung: Rung) -> str:
    """Of the rung's pretraining run, from the study's folder."""
    return f"rungs/{rung.id}"


def take_over(place: Folder, ladder: Ladder, rung: Rung, job: PretrainJob) -> int:
    """Gives the run of `job` the furthest checkpoint of its trunk, if it has none yet; returns the pairs taken over.

    Whatever was taken over before, by a start that was killed, is told again.
    """
    note = f"{run_folder(rung)}.start.json"
    own = place.join(run_folder(rung))
    if newest_checkpoint(own) is not None:
        return int(json.loads(place.read_text(note))["seen"]) if place.exists(note) else 0
    found = _furthest(place, ladder, rung)
    if found is None:
        return 0
    seen, path = found
    place.write_text(note, json.dumps({"seen": seen, "from": path}) + "\n")
    adopt_checkpoint(path, own, job.fingerprint, resolved_yaml(job))
    return seen


def _furthest(place: Folder, ladder: Ladder, rung: Rung) -> tuple[int, str] | None:
    """(seen, address) of the last checkpoint that another rung of the trunk has in common with this one."""
    found: list[tuple[int, str]] = []
    for other in ladder.trunk_of(rung):
        if other.id == rung.id:
            continue
        common = min(other.branch or 0, rung.branch or 0)
        known = checkpoints(place.join(run_folder(other)))
        found += [(seen, path) for seen, path in known.items() if seen <= common]
    return max(found, default=None)
