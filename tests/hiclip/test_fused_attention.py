"""The fused attention against the reference, value and gradient: by Triton's interpreter, as there may be no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import cases

from hiclip.model.fused_attention import can_fuse
from hiclip.model.hierarchy import GridLinks

ROOT = Path(__file__).parent.parent.parent
Differences = dict[str, dict[str, list[float]]]
CASES = cases()


def answer(*arguments: str, **environment: str) -> Any:
    """What `attention_cases` prints, from a process of its own."""
    command = [sys.executable, str(ROOT / "tests" / "attention_cases.py"), *arguments]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=settings | environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def interpreted() -> Differences:
    differences: Differences = answer(TRITON_INTERPRET="1")
    return differences


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_the_reference(interpreted: Differences, case: str) -> None:
    tolerance = 2e-2 if CASES[case].dtype == torch.bfloat16 else 1e-4
    results = interpreted[case]
    assert len(results) >= 5 or CASES[case].tokens == 1
    for name, (difference, largest) in results.items():
        assert difference < tolerance * max(1.0, largest), name
    # One token, or one alone in its group, has a softmax of one: nothing flows into its scores.
    if CASES[case].tokens > 1:
        assert all(largest > 1e-3 for _, largest in results.values())


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """For an A100's generation, without one: types and shapes fit, and so does the shared memory of smaller GPUs."""
    shared = answer("--compile", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert shared.keys() == {"attend", "key_gradients"}
    assert max(shared.values()) <= 99 * 1024


def test_what_the_kernels_do_not_know_goes_the_plain_way() -> None:
    query = torch.zeros(1, 1, 5, 64)
    links = [torch.ones(1, 2, 1), torch.ones(1, 1, 2)]
    assert can_fuse(query, GridLinks(*links))
    assert not can_fuse(query, GridLinks(*links, cls_link="column_only"))
    assert not can_fuse(query.double(), GridLinks(*links))
    assert not can_fuse(query[..., :48], GridLinks(*links))
