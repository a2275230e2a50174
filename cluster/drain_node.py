"""Tells Ray that this machine will be taken away, so that what trains on it writes a checkpoint first.

python cluster/drain_node.py 100                    now: a pod's preStop hook
python cluster/drain_node.py 100 --at-spot-notice   once AWS says that the machine goes, two minutes ahead

Then it waits, those seconds at most, for the machine's Ray to end: a pod lives as long as its hook runs.
"""

from __future__ import annotations

import argparse
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

_METADATA = "http://169.254.169.254/latest"
"""Where a machine of AWS asks about itself."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=int, help="until the machine is gone")
    parser.add_argument("--at-spot-notice", action="store_true", help="wait for the notice of AWS first")
    parser.add_argument("--metadata", default=_METADATA, help="address of the machine's metadata")
    given = parser.parse_args()
    if given.at_spot_notice:
        while not _noticed(given.metadata):
            time.sleep(5)
    _drain(given.seconds)
    until = time.monotonic() + given.seconds
    while time.monotonic() < until and _raylet_runs():
        time.sleep(1)


def _noticed(metadata: str) -> bool:
    """Whether AWS will take the machine away; False where nobody answers."""
    ask = urllib.request.Request(
        f"{metadata}/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    )
    try:
        with urllib.request.urlopen(ask, timeout=2) as answer:
            token = answer.read().decode()
        notice = urllib.request.Request(
            f"{metadata}/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
        )
        with urllib.request.urlopen(notice, timeout=2):
            return True
    except (urllib.error.URLError, TimeoutError):  # 404 until there is a notice
        return False


def _drain(seconds: int) -> None:
    # Ray's own command for this, which its --help does not list: it finds this machine's node by itself.
    subprocess.run(
        ["ray", "drain-node", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the machine is taken away",
         f"--deadline-remaining-seconds={seconds}"],
        check=True, timeout=60,  # on top of the seconds that are waited
    )  # fmt: skip


def _raylet_runs() -> bool:
    for name in Path("/proc").glob("[0-9]*/comm"):
        try:
            if name.read_text() == "raylet\n":
                return True
        except OSError:  # it has just ended
            continue
    return False


if __name__ == "__main__":
    main()
