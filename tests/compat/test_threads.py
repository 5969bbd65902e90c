"""Two patched pipelines at work at the same time: nothing is shared."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from tests import tiny

from tokendown import apply_patch, is_patched

SETTINGS = [
    {"factor": {1: 2}, "anchors": 3, "stop": 0.6},
    {"factor": {1: 4, 2: 2}, "anchors": 0},
]
SIZES = [24, 32]


@pytest.mark.compat("threads", note="two pipelines with other options, sizes and step windows")
def test_two_pipelines_in_two_threads(tokenizer_folder):
    def picture(index: int, pipe):
        return tiny.image_of(pipe, steps=5, size=SIZES[index], seed=index, output_type="latent")

    pipes = [tiny.sd_pipeline(tokenizer_folder), tiny.sd_pipeline(tokenizer_folder)]
    dense = [picture(index, pipe) for index, pipe in enumerate(pipes)]
    for pipe, options in zip(pipes, SETTINGS, strict=True):
        apply_patch(pipe, **options)
    alone = [picture(index, pipe) for index, pipe in enumerate(pipes)]
    assert not any(torch.equal(a, b) for a, b in zip(alone, dense, strict=True))

    barrier = Barrier(2, timeout=60)

    def work(index: int):
        results = []
        for _ in range(3):
            barrier.wait()
            results.append(picture(index, pipes[index]))
        return results

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, range(2)))
    for index in range(2):
        assert all(torch.equal(result, alone[index]) for result in results[index])


@pytest.mark.compat("threads", note="patching and removing beside a running pipeline")
def test_patching_one_pipeline_while_another_runs(tokenizer_folder):
    running, changing = tiny.sd_pipeline(tokenizer_folder), tiny.sd_pipeline(tokenizer_folder)
    apply_patch(running, factor=2)
    expected = tiny.image_of(running, size=24, output_type="latent")
    dense = tiny.image_of(changing, size=24, output_type="latent")

    def change() -> None:
        for factor in (2, 3, 4) * 5:
            with apply_patch(changing, factor=factor):
                assert is_patched(changing)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(change)
        for _ in range(3):
            result = tiny.image_of(running, size=24, output_type="latent")
            assert torch.equal(result, expected)
        done.result(timeout=60)
    assert torch.equal(tiny.image_of(changing, size=24, output_type="latent"), dense)
