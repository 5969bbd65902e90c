"""The paper's Figure 4: how alike neighbouring tokens are, by layer and timestep.

    python -m paper.figure4                     # the built-in model at its native size
    python -m paper.figure4 --model FOLDER_OR_HUB_ID --steps 30
    python -m paper.figure4 --quick             # one prompt, few steps, no file

Writes the map as PNG and SVG and the numbers to out/paper. What a cell shows:
for every token the lowest cosine similarity between any two tokens of the 3 x 3 neighbourhood
around it, in the input of the self-attention module; the mean over tokens and prompts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

from paper.report import RESULTS, add_model, environment, exact
from PIL import Image, ImageDraw, ImageFont

from tokendown import generate as gen
from tokendown.analyze import Analysis, analyze
from tokendown.analyze.page import short_name
from tokendown.analyze.prompts import PROMPTS
from tokendown.analyze.report import similarity_map
from tokendown.analyze.svg import colour
from tokendown.cli.options import parse_size

HERE = Path(__file__).parent


def draw(analysis: Analysis) -> Image.Image:
    """The heat map in pixels, for readers that show no SVG."""
    rows = {short_name(layer.name): layer.measures["similarity"] for layer in analysis.layers}
    low = min(0.0, *(value for row in rows.values() for value in row))
    font = ImageFont.load_default(16)
    left = 20 + int(max(font.getlength(name) for name in rows))
    wide, tall, top = max(14, 900 // len(analysis.timesteps)), 28, 40
    width = left + wide * len(analysis.timesteps) + 100
    image = Image.new("RGB", (width, top + tall * len(rows) + 50), "white")
    pen = ImageDraw.Draw(image)
    pen.text((left, 10), "lowest cosine similarity in 3 x 3 tokens", "black", font)
    for i, (name, row) in enumerate(rows.items()):
        y = top + i * tall
        pen.text((left - 8, y + tall // 2), name, "black", font, anchor="rm")
        for j, value in enumerate(row):
            x = left + j * wide
            ink = colour((value - low) / (1.0 - low))
            pen.rectangle((x, y, x + wide - 2, y + tall - 2), fill=ink)
    bottom = top + tall * len(rows)
    every = max(1, 60 // wide)
    for j in range(0, len(analysis.timesteps), every):
        label = f"{analysis.timesteps[j]:.0f}"
        pen.text((left + (j + 0.5) * wide, bottom + 8), label, "black", font, anchor="mt")
    pen.text((left, bottom + 28), "timestep", "black", font)
    scale = bottom - top
    x = left + wide * len(analysis.timesteps) + 16
    for i in range(scale):
        pen.line((x, top + i, x + 14, top + i), fill=colour(1 - i / scale))
    pen.text((x + 20, top), "1.00", "black", font)
    pen.text((x + 20, bottom), f"{low:.2f}", "black", font, anchor="ls")
    return image


def numbers(analysis: Analysis) -> dict[str, object]:
    """What the figure shows, and one number a layer."""
    return {
        "figure": "the paper's Figure 4",
        "model": analysis.request["model"],
        "request": analysis.request,
        "prompts": list(analysis.prompts),
        "timesteps": list(analysis.timesteps),
        "similarity": {layer.name: layer.measures["similarity"] for layer in analysis.layers},
        "mean": {
            layer.name: round(fmean(layer.measures["similarity"]), 4) for layer in analysis.layers
        },
        "grids": {layer.name: list(layer.grid) for layer in analysis.layers},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", help="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--prompts", type=int, default=4, help="how many of the fixed ones")
    add_model(parser)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    results = arguments.out
    width, height = parse_size(arguments.size)
    steps = 4 if arguments.quick else arguments.steps
    exact()
    pipe, request = gen.open_pipeline(
        gen.Request(
            model=arguments.model, width=width, height=height, steps=steps, config=None,
            device=arguments.device, dtype="float32",
        )
    )  # fmt: skip
    prompts = PROMPTS[: 1 if arguments.quick else arguments.prompts]
    analysis = analyze(
        pipe, request, prompts, factors=(2,), anchors=(0,), methods=("nearest",), queries=64
    )
    for name, mean in numbers(analysis)["mean"].items():  # type: ignore[attr-defined]
        print(f"{mean:6.3f}  {name}")
    if arguments.quick:
        return
    figures = HERE / "figures" if results.resolve() == RESULTS.resolve() else results
    for place in (figures, results):
        place.mkdir(parents=True, exist_ok=True)
    draw(analysis).save(figures / "figure4.png")
    (figures / "figure4.svg").write_text(similarity_map(analysis) + "\n")
    record = {**numbers(analysis), "environment": environment(request.device)}
    (results / "figure4.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
