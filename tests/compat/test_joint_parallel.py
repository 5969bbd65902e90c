"""Context parallelism of diffusers on two and four processes, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.older import needs_pinned

from .context_parallel import ANCHORS, RUNS, SIZE, TEXT

pytestmark = needs_pinned("it shares out even lengths only")
WORKER = Path(__file__).with_name("context_parallel.py")

# A layer's exchanges: Ulysses sends queries, keys, values and results one by one; a ring keys and
# values together; both at once do both. The output of the model comes last.
EXCHANGES = {
    "ulysses_degree": (4, (1, 2)),
    "ring_degree": (1, (0,)),
    "ulysses_degree ring_degree": (5, (1, 2, 3)),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Ranks to what the first of them found."""
    folder = tmp_path_factory.mktemp("parallel")
    paths = [str(WORKER.parent.parent), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {ranks: json.loads((folder / f"{ranks}.json").read_text()) for ranks in (2, 4)}


@pytest.mark.compat(
    "transformers: context parallelism", note="Ulysses, ring and both; 2 and 4 processes"
)
def test_equal_to_one_process(results):
    for ranks, kind, degrees in RUNS:
        found = results[ranks][f"{kind} {' '.join(degrees)}"]
        assert found["0 anchors"]["reference"] < 1e-5
        assert found["0 anchors"]["single"] < 1e-5


@pytest.mark.compat(
    "transformers: context parallelism with anchors", note="every rank chooses its share"
)
def test_every_rank_chooses_its_share_of_the_anchors(results):
    """So the result is that of a reference which chooses so, and not that of one process."""
    differs = []
    for ranks, kind, degrees in RUNS:
        found = results[ranks][f"{kind} {' '.join(degrees)}"]["4 anchors"]
        assert found["reference"] < 1e-5
        differs.append(found["single"] > 1e-3)
    assert any(differs)


@pytest.mark.compat(
    "transformers: context parallelism, bytes exchanged", note="1 / factor squared of the picture"
)
def test_only_kept_keys_are_sent(results):
    """1 / factor squared of the image keys; the bias takes one head channel, padded to 8."""
    for ranks, kind, degrees in RUNS:
        found = results[ranks][f"{kind} {' '.join(degrees)}"]
        exchanges = EXCHANGES.get(" ".join(degrees))
        if exchanges is None or kind == "qwen_image":  # whose mask carries the bias
            continue
        frames, text = (3, 0) if kind == "wan" else (1, TEXT)
        tokens = frames * SIZE[0] * SIZE[1]
        dense = of_keys(found["dense"], *exchanges)
        for anchors in ANCHORS:
            folded = 2 if text or anchors else 1
            share = (text + tokens / 4 + anchors) * folded / (text + tokens)
            sent = of_keys(found[f"{anchors} anchors"]["sent"], *exchanges)
            assert sent / dense == pytest.approx(share), (ranks, kind, degrees, anchors)


def of_keys(sent: list[int], exchanges: int, which: tuple[int, ...]) -> int:
    """Numbers sent for keys and values."""
    return sum(count for at, count in enumerate(sent[:-1]) if at % exchanges in which)


@pytest.mark.compat(
    "transformers: context parallelism, shares of unequal cost",
    note="misaligned rows and reference pictures are refused",
)
def test_what_cannot_be_shared_is_refused(results):
    for ranks, height in ((2, 8), (4, 8)):
        refused = results[ranks]["refused"]
        assert f"multiple of {2 * ranks} tokens, for example {height}" in refused["rows"]
        assert "1 reference pictures" in refused["references"]
        assert not refused["dense"]
