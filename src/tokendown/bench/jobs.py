"""What to measure: one job is a model with its sizes and methods; a preset is a list of jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .._errors import ConfigError
from ..models import builtin
from .backends import BEST, CHOICES
from .backends import DEFAULT as DEFAULT_BACKEND
from .methods import DEFAULT, DENSE, check_name
from .shapes import find_shape

COMPILE = ("no", "blocks", "model", "graph")
_LEAST = {"rounds": 1, "batch": 1, "steps": 1, "blocks": 1, "warmup": 0}


@dataclass(frozen=True)
class Job:
    """One model at several sizes.

    Args:
        shape: of ``shapes.SHAPES``, random weights; None means ``model``.
        model: "built-in", a Hub id, a diffusers folder or a .safetensors file.
        whole: time whole pictures instead of one denoiser step.
        sizes: (width, height) in pixels; empty means the native size.
        methods: names, see ``methods``; dense is always among them.
        rounds: in each of which every method has a turn, >= 1.
        batch: of a denoiser step, >= 1; 2 is one image with guidance.
        steps: of a whole picture; None means the pipeline's own.
        dtype: "auto", "float32", "float16" or "bfloat16".
        device: "auto", "cpu", "cuda", "mps".
        backend: of attention, see ``backends``.
        compile: "no"; "blocks" compiles the repeated blocks, "model" the whole denoiser; "graph"
            compiles nothing, but replays a CUDA graph of the call, which waits for no Python.
        compiler: backend of ``torch.compile``.
        blocks: of each stack of a shape, the others being extrapolated; None means all.
        warmup: calls before the timed ones, >= 0; None means 2 where something is compiled, else 1,
            and 0 on a CPU, where one small call warms everything up.
        least_seconds: of the timed calls of a cell together; None means 0.5, and 0 on a CPU.

    Raises:
        ConfigError: options that are wrong or do not go together.
    """

    shape: str | None = None
    model: str = builtin.NAME
    whole: bool = False
    sizes: tuple[tuple[int, int], ...] = ()
    methods: tuple[str, ...] = DEFAULT
    rounds: int = 3
    batch: int = 1
    steps: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    backend: str = DEFAULT_BACKEND
    compile: str = "no"
    compiler: str = "inductor"
    blocks: int | None = None
    warmup: int | None = None
    least_seconds: float | None = None

    def __post_init__(self) -> None:
        names = dict.fromkeys((DENSE, *map(check_name, self.methods)))
        object.__setattr__(self, "methods", tuple(names))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"expected at least {least} for {name}, got {value}")
        if self.backend not in CHOICES:
            raise ConfigError(f"expected a backend of {', '.join(CHOICES)}, got {self.backend!r}")
        if self.compile not in COMPILE:
            raise ConfigError(f"expected compile {', '.join(COMPILE)}, got {self.compile!r}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.shape is not None:
            shape = find_shape(self.shape)
            if self.whole:
                raise ConfigError(
                    "a shape is a denoiser alone; whole pictures need --model, or no --shape"
                )
            if not self.sizes and shape.size is None:
                raise ConfigError("a shape needs a size, such as --size 1024")
        if self.steps is not None and not self.whole:
            raise ConfigError("the number of steps belongs to whole pictures: add --whole")
        if self.whole and self.batch != 1:
            raise ConfigError("the batch belongs to single steps; a picture has its own")
        if self.blocks is not None and self.shape is None:
            raise ConfigError("a few blocks can be timed of a --shape only")
        if self.compile == "graph" and (self.whole or self.blocks is not None):
            raise ConfigError("a CUDA graph is of a step of a whole denoiser")
        if self.blocks is not None and self.compile != "no":
            raise ConfigError("single blocks are timed without compilation; leave one of them out")

    @property
    def target(self) -> str:
        """What is measured, for the record."""
        return self.shape or self.model


_MATRIX_SIZES = ((1024, 1024), (1536, 1536), (2048, 2048), (4096, 4096))
_DTYPES = {"sd15": "float16", "sd21": "float16", "sdxl": "float16", "pixart-sigma": "bfloat16"}
_COMPILED = (DENSE, "paper", "auto", "minimal", "tomesd-equal", "bound")


def _gpu() -> list[Job]:
    """Every shape and size in half precision, with guidance.

    As CUDA graphs first, on PyTorch's own choice of attention, for eager steps of small pictures
    time Python, not the card. Eager next, against the best dense attention. Compiled last, since
    compilation takes longer than measuring, repeated blocks only for the same reason, and without
    the methods that differ in what they sample only.
    """
    graphs = [
        Job(shape, sizes=_MATRIX_SIZES, dtype=dtype, device="cuda", batch=2, compile="graph")
        for shape, dtype in _DTYPES.items()
    ]
    eager = [replace(job, compile="no", backend=BEST) for job in graphs]
    return graphs + eager + [replace(job, compile="blocks", methods=_COMPILED) for job in eager]


def _cpu() -> list[Job]:
    """The records of the README, on a machine without a GPU; takes about an hour on two cores."""
    job = Job("sd15", device="cpu", dtype="float32", sizes=((1024, 1024),))
    further = ("budget 4096",)
    return [
        replace(job, methods=(*DEFAULT, *further)),
        replace(job, sizes=((2048, 2048),), rounds=2),
        replace(job, shape="sdxl", rounds=2),
    ]


PRESETS: dict[str, Callable[[], list[Job]]] = {"gpu": _gpu, "cpu": _cpu}


def preset(name: str) -> list[Job]:
    """The jobs of a preset.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"expected a preset of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]()
