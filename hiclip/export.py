"""Exports a checkpoint: `python -m hiclip.export CHECKPOINT OUT [--result EVALUATION_FOLDER]`.

OUT gets the weights, what the model is, a note on its tokenizer and a card, and is loaded by three lines that need
torch and safetensors alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from pipeline.command import console, program, run_to_end


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command, with the arguments of the process unless others are given."""
    parser = argparse.ArgumentParser(prog=program(), description=__doc__)
    parser.add_argument("checkpoint", help="folder of a checkpoint or of a run, whose newest one is taken; or s3://")
    parser.add_argument("out", help="a new or empty folder, or s3://")
    parser.add_argument("--result", metavar="EVALUATION_FOLDER", help="a finished evaluation of the same weights")
    given = parser.parse_args(argv)
    run_to_end(parser.prog, lambda: _run(given.checkpoint, given.out, given.result))


def _run(checkpoint: str, out: str, result: str | None) -> str:
    # Here, so that a mistake in the arguments is told before torch has loaded.
    from hiclip.evaluation.export_checkpoint import CARD, export_checkpoint
    from hiclip.evaluation.model_card import LOADING

    place = export_checkpoint(checkpoint, out, result)
    console.print(f"export    {place.root}; in this folder it is loaded by\n\n{LOADING}\n", markup=False)
    return place.join(CARD)


if __name__ == "__main__":
    main()
