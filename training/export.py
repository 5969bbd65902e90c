"""Write the trained weights as a plain StableDiffusionPipeline folder in half precision."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from .autoencoder import load_trained
from .captions import COLOURS
from .config import CONFIGS, ROOT, Config
from .data import read_names
from .model import build_scheduler
from .sample import load_painter

TARGET = ROOT / "src" / "tokendown" / "models" / "emoji"
EVALUATION = Path(__file__).parent / "results" / "evaluation.json"
LIMIT_BYTES = 48_000_000


def export(config: Config, target: Path) -> int:
    """Replaces what is in the folder; returns the number of bytes in it."""
    painter, tokenizer, step = load_painter(config)
    if target == TARGET and step <= config.stages[0].steps:
        raise SystemExit(f"step {step}: the top level is untrained, its pictures would be noise")
    pipeline = StableDiffusionPipeline(
        vae=load_trained(config),
        text_encoder=painter.text_encoder,
        tokenizer=tokenizer,
        unet=painter.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16)
    for part in (p for p in target.glob("*") if p.is_dir()):
        shutil.rmtree(part)
    pipeline.save_pretrained(target)
    tokenizer.backend_tokenizer.model.save(str(target / "tokenizer"))  # for transformers 4
    _name_for_every_transformers(target / "text_encoder" / "model.safetensors")
    _load_as_float32(target / "text_encoder" / "config.json")
    (target / "README.md").write_text(card(config, step), encoding="utf-8")
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    if size > LIMIT_BYTES:
        raise SystemExit(f"{size} bytes are too many to ship, {LIMIT_BYTES} is the limit")
    print(f"step {step}: {size / 1e6:.1f} MB in {target.name}")
    return size


def card(config: Config, step: int) -> str:
    """The model card, with the numbers of this run."""
    concepts = read_names(config.subjects)
    text = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    values = {
        "channels": str(config.unet.channels),
        "text_layers": str(config.text.layers),
        "text_width": str(config.text.width),
        "vocabulary": str(config.text.vocabulary),
        "steps": f"{step:,}",
        "name": config.name,
        "concepts": f"{len(concepts):,}",
        "lists": " and ".join(f"`training/{name}.txt`" for name in config.subjects),
        "colours": ", ".join(COLOURS),
        "results": _results(config),
    }
    for key, value in values.items():
        text = text.replace("{" + key + "}", value)
    return text


def _results(config: Config) -> str:
    """What evaluate.py found, if that was about this configuration."""
    found = json.loads(EVALUATION.read_text(encoding="utf-8")) if EVALUATION.exists() else {}
    if found.get("config") != config.name:
        return (
            "Not measured yet: `python -m training.evaluate` does, and a new export says so here."
        )
    rows = "\n".join(f"| {name} | {value} |" for name, value in measures(found))
    about = f"{found['pictures']} pictures, {found['steps']} steps, guidance {found['guidance']}"
    return (
        f"{about}; `training/evaluate.py` says what the names mean.\n\n"
        f"| measure | value |\n| --- | --- |\n{rows}"
    )


def measures(found: dict) -> Iterator[tuple[str, str]]:
    """(name, value) of what evaluate.py found, for people to read."""
    for name, value in found["samples"].items():
        yield name.replace("_", " "), _value(value)
    off = found["top_attention_off"]
    yield (
        f"subject, with top self-attention and without ({off['pictures']} pictures)",
        f"{off['with']['subject']} and {off['without']['subject']}",
    )
    fid = found.get("fid")
    if fid:
        known = fid["the_training_pictures_asked_for"]
        yield (
            f"FID of {fid['pictures']} pictures to {fid['reference_pictures']} training pictures",
            f"{fid['samples']}, where as many training pictures have {known}",
        )


def _value(value: float | dict[str, float]) -> str:
    if not isinstance(value, dict):
        return str(value)
    return f"{value['median']} (tenth {value['p10']}, nine tenths {value['p90']})"


def _name_for_every_transformers(path: Path) -> None:
    """transformers 5 saves names without ``text_model``, which 4 would silently not load."""
    weights = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def _load_as_float32(config: Path) -> None:
    """transformers would else load the type that was saved, diffusers always loads float32."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values = {k: "float32" if k in ("dtype", "torch_dtype") else v for k, v in values.items()}
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", choices=CONFIGS)
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument(
        "--card", type=int, metavar="STEP", help="only the card, of weights that STEP steps made"
    )
    arguments = parser.parse_args()
    chosen = CONFIGS[arguments.config]
    if arguments.card is None:
        export(chosen, arguments.target)
    else:
        (arguments.target / "README.md").write_text(card(chosen, arguments.card), "utf-8")
