"""What all commands share: `JOB.yaml [key.path=value ...] [--dry-run]`, one line and exit code 2 for a mistake,
and `result: PATH` as the last line of a run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NoReturn, TypeVar

from rich.console import Console, RenderableType

from pipeline.job_keys import first_sentence, job_keys
from pipeline.jobfile import EndedEarlyError, InputError, Job, read_job

J = TypeVar("J", bound=Job)
V = TypeVar("V")

console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
"""Standard output of the commands; lines are not broken where nobody looks at a terminal."""

_QUIET = {
    # Vendors that would call home, or look for a hub, at import or at start.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_OFFLINE": "1",
    # Ray 2.60 otherwise warns at every start that accelerator variables will be left alone one day.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class WithValue(Generic[J, V]):
    """What a command does with a job and a value, which stands behind the option: `--explain PAIR_ID`."""

    value: str
    """Its name in the help."""
    read: Callable[[str], V]
    """The value from its text; InputError where it is none."""
    run: Callable[[J, V], str | None]

    def bound(self, text: str) -> Callable[[J], str | None]:
        """What is left to do with a job."""
        return lambda job: self.run(job, self.read(text))


Instead = Callable[[J], str | None] | WithValue[J, str] | WithValue[J, int]
"""Returns the path of its result.json, None where what it has to say was printed."""


def run_command(
    kind: type[J],
    plan: Callable[[J], RenderableType],
    run: Callable[[J], str],
    argv: Sequence[str] | None = None,
    instead: Mapping[str, Instead[J]] | None = None,
    epilog: str | None = None,
) -> NoReturn:
    """Runs one command of the job type `kind` and ends the process.

    `plan` returns what `--dry-run` prints; `run` returns the path of the run's result.json. `instead`: what else the
    command does with a job, by the option that asks for it; the docstring's first sentence is the option's help. All
    may raise InputError, which becomes one line on standard error and exit code 2, or EndedEarlyError, with an exit
    code of its own; anything else is a fault of ours: traceback, exit code 1. `epilog` ends the help.
    """
    parser = argparse.ArgumentParser(prog=program(), description=sys.modules[kind.__module__].__doc__, epilog=epilog)
    parser.add_argument("job", help="the job file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes one key of the job")
    parser.add_argument("--keys", nargs="?", const="", metavar="PATH", action=_keys_action(kind), help=_KEYS_HELP)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its bill, then stop")
    for name, other in (instead or {}).items():
        option = partial(parser.add_argument, f"--{name}", dest="run")
        if isinstance(other, WithValue):
            option(metavar=other.value, type=other.bound, help=first_sentence(other.run.__doc__))
        else:
            option(action="store_const", const=other, help=first_sentence(other.__doc__))
    parser.set_defaults(run=run)
    # intermixed: `JOB.yaml --dry-run model.width=128` and any other order mean the same
    given = parser.parse_intermixed_args(argv)

    def act() -> str | None:
        job = read_job(given.job, given.overrides, kind)
        if given.dry_run:
            console.print(plan(job))
            return None
        result: str | None = given.run(job)
        return result

    run_to_end(parser.prog, act)


def program() -> str | None:
    """The command's name as `python -m` was given it; None where a file is run by its path."""
    main = sys.modules["__main__"].__spec__
    return main.name if main else None


def run_to_end(prog: str, act: Callable[[], str | None]) -> NoReturn:
    """Runs what a command does, prints the path that it returns, and ends the process as `run_command` says."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        result = act()
        sys.stdout.flush()
        if result is not None:
            print(f"result: {result}", flush=True)
    except (InputError, EndedEarlyError) as error:
        sys.stdout.flush()
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, EndedEarlyError) else 2)
    sys.exit(0)


_KEYS_HELP = "print every key that a job may have, or those below PATH, with its default and meaning, then stop"


def _keys_action(kind: type[Job]) -> type[argparse.Action]:
    """As `--help` is: it asks for no job."""

    class PrintKeys(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *given: object) -> NoReturn:
            _, path, _ = given
            keys = [key for key in job_keys(kind) if not path or f"{key.path}.".startswith(f"{path}.")]
            if not keys:
                parser.error(f"--keys: no such key: {path}")
            for key in keys:
                default = f" {key.default}" if key.default else ""
                print(f"{key.path}:{default}  # {key.meaning}")
            sys.exit(0)

    return PrintKeys
