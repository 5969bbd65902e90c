"""From the names of emoji to concepts, and from a concept to many phrasings of a caption."""

from __future__ import annotations

import json
import random
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

# Background colours and their sRGB values; far enough apart to be told from a corner pixel.
PALETTE = {
    "white": (255, 255, 255),
    "black": (24, 24, 24),
    "gray": (140, 140, 140),
    "red": (220, 50, 47),
    "orange": (245, 140, 40),
    "yellow": (250, 215, 60),
    "green": (60, 170, 80),
    "teal": (40, 170, 170),
    "blue": (50, 100, 220),
    "purple": (130, 70, 190),
    "pink": (245, 150, 190),
    "brown": (130, 85, 55),
}
COLOURS = tuple(PALETTE)

SKIN = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium dark skin tone",
    "1F3FF": "dark skin tone",
}


# Better words than the data set's for a few pictures, by short name.
RENAMED = {
    "heart": ("red heart", "heart"),
    "hankey": ("pile of poo", "poop"),
    "zap": ("lightning bolt", "high voltage sign"),
    "8ball": ("billiard ball", "black ball with an eight"),
    "smiley": ("smiling face with open mouth", "smiley", "happy face"),
    "cry": ("crying face", "sad face with a tear"),
    "sob": ("loudly crying face", "sobbing face"),
    "rage": ("pouting face", "red angry face"),
    "sunglasses": ("smiling face with sunglasses", "cool face with sunglasses"),
    "sunny": ("sun", "black sun with rays"),
    "blue_car": ("blue car", "recreational vehicle"),
    "car": ("red car", "automobile", "car"),
    "boat": ("sailboat", "boat"),
    "star": ("star", "yellow star"),
    "earth_africa": ("earth", "globe"),
    "ocean": ("wave", "water wave"),
    "bulb": ("light bulb", "electric light bulb"),
    "house": ("house", "house building"),
    "european_castle": ("castle", "european castle"),
    "gem": ("gem", "diamond", "gem stone"),
    "icecream": ("ice cream", "soft ice cream"),
    "t-rex": ("dinosaur", "t rex"),
    "key": ("key", "silver key"),
    "football": ("american football", "football"),
    "moneybag": ("money bag",),
}

PHRASES = (
    "{noun}, {colour} background",
    "{noun} on a {colour} background",
    "a {noun} on a {colour} background",
    "{noun} emoji, {colour} background",
    "an emoji of a {noun} on a {colour} background",
    "{kind}, {noun}, {colour} background",
)
PLAIN_PHRASES = ("{noun}", "a {noun}", "{noun} emoji", "an emoji of a {noun}", "{kind}, {noun}")
PLAIN_COLOUR = "white"  # what a caption without a colour stands for


@dataclass(frozen=True)
class Variant:
    """One picture of a concept; `tone` is empty but for a spelled-out skin tone."""

    file: str
    tone: str = ""


@dataclass(frozen=True)
class Concept:
    """One thing to draw, under all its names, with its skin tones as variants."""

    nouns: tuple[str, ...]
    category: str
    kind: str
    variants: tuple[Variant, ...]


def short_names(subjects: tuple[str, ...]) -> frozenset[str]:
    """What stands in some of the lists beside this file: things that people name at a glance."""
    lists = (Path(__file__).with_name(f"{name}.txt") for name in subjects)
    return frozenset(word for path in lists for word in path.read_text(encoding="utf-8").split())


def read_concepts(path: Path, files: set[str], subjects: tuple[str, ...] = ()) -> list[Concept]:
    """Concepts whose picture is among `files`, in the order of the names file.

    Args:
        path: of the names file.
        files: names of pictures.
        subjects: lists of short names, see `short_names`; none means every concept.
    """
    concepts, listed = [], short_names(subjects)
    for entry in json.loads(path.read_text(encoding="utf-8")):
        variants = tuple(v for v in _variants(entry) if v.file in files)
        if variants and (not subjects or entry["short_name"] in listed):
            concepts.append(
                Concept(_nouns(entry), entry["category"], _words(entry["subcategory"]), variants)
            )
    return concepts


def _variants(entry: dict) -> list[Variant]:
    tones = entry.get("skin_variations", {})
    spelled = [
        Variant(_file(v["unified"]), " and ".join(SKIN[t] for t in key.split("-")))
        for key, v in tones.items()
    ]
    return [Variant(_file(entry["unified"])), *spelled]


def _file(unified: str) -> str:
    return f"{unified.lower()}.webp"


def _nouns(entry: dict) -> tuple[str, ...]:
    """The Unicode name and the short names, as plain words."""
    if entry["short_name"] in RENAMED:
        return RENAMED[entry["short_name"]]
    names = [entry["name"] or "", *entry["short_names"]]
    words = [_words(name) for name in names]
    return tuple(dict.fromkeys(w for w in words if re.search(r"[a-z]{2}", w)))


def _words(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def held_out(concept: Concept, colour: str) -> bool:
    """One in six pairs of subject and background is never trained on, to ask for it later."""
    pair = f"{concept.nouns[0]} {colour}".encode()
    return colour != PLAIN_COLOUR and zlib.crc32(pair) % 6 == 0


def caption(concept: Concept, variant: Variant, colour: str, rng: random.Random) -> str:
    """A random phrasing; plain ones, without a colour, only where the colour is the default."""
    noun = rng.choice(concept.nouns)
    noun = f"{noun} with {variant.tone}" if variant.tone else noun
    plain = colour == PLAIN_COLOUR and rng.random() < 0.5
    phrase = rng.choice(PLAIN_PHRASES if plain else PHRASES)
    return phrase.format(noun=noun, colour=colour, kind=concept.kind)


def every_caption(concepts: list[Concept]) -> list[str]:
    """Enough text to train the tokenizer on: every noun, kind and tone, and every phrase."""
    lines = [
        p.format(noun=n, colour=c, kind=k.kind)
        for k in concepts
        for n in k.nouns
        for p, c in zip(PHRASES, COLOURS * 2, strict=False)
    ]
    return lines + list(COLOURS) * 50 + list(SKIN.values()) * 50
