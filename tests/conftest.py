"""Settings of the whole suite."""

import hypothesis
import numpy
import pytest
import torch
from diffusers.utils import logging
from PIL import Image

import older

# The models are tiny: more threads only wait for each other, above all on a busy machine.
torch.set_num_threads(1)

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("suite")

logging.set_verbosity_error()  # casts of whole models and tiny step counts are meant

if older.OLDER:
    older.fill_in_names()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if older.OLDER and report.failed and older.misses_a_class(call.excinfo):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: {call.excinfo.value}")
    return report


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """A folder with two pictures and a mask, 40 x 24."""
    root = tmp_path_factory.mktemp("originals")
    noise = numpy.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype="uint8")
    Image.fromarray(noise).save(root / "in.png")
    Image.fromarray(noise[::-1].copy()).save(root / "other.png")
    mask = numpy.zeros((24, 40), dtype="uint8")
    mask[:, 20:] = 255
    Image.fromarray(mask).save(root / "mask.png")
    return root


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Name to the folder of that pipeline in tests/tiny_pipelines.py, saved when first asked for.

    A second argument makes a pipeline that is not there: it is called with a folder for files.
    """
    from tests import tiny_pipelines

    root = tmp_path_factory.mktemp("pipelines")

    def get(name, make=None):
        if not (root / name).exists():
            make = make or getattr(tiny_pipelines, name)
            make(root / "tokenizer").save_pretrained(root / name)
        return root / name

    return get
