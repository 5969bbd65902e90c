"""Context parallelism of diffusers on two processes, against one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("context_parallel.py")


def on_two_ranks() -> dict:
    """What the first of two ranks prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = [str(WORKER.parent.parent), *filter(None, sys.path)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER)],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(paths),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, errors[-3000:]
    return json.loads(outputs[0][0].splitlines()[-1])


# Of 26 tokens a rank (2 of text), FLUX keeps 8; with the bias a head has 16 channels instead of 8.
# Of 72 tokens a rank, Wan keeps 18, and needs no bias.
SHARES = {"flux": 8 * 16 / (26 * 8), "wan": 1 / 4}
# Ulysses sends queries, keys, values and results; a ring keys and values together, and the output.
KEYS = {"ulysses": slice(1, None, 4), "ring": slice(None, -1)}


@pytest.mark.compat(
    "transformers: context parallelism", note="Ulysses and ring, two processes, equal to one"
)
def test_two_processes_equal_one():
    results = on_two_ranks()
    assert len(results) == 3
    for name, found in results.items():
        mode, kind = name.split()
        assert found["difference"] < 1e-5
        sent, dense = (sum(found[which][KEYS[mode]]) for which in ("sent", "dense"))
        assert sent / dense == pytest.approx(SHARES[kind])
        assert "multiple of 4 tokens, for example 8" in found["refused"]
