"""Reads sentences about a scene by itself, from their words alone: a second opinion on `data/world/language.py`."""

from __future__ import annotations

import re

from ofa_plugin.data.world.scene import COLOURS, KINDS, SIZES, TEXTURES, Scene, Shape

NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
SIDES = r"(left of|right of|above|below)"
EXTREMES = {
    "leftmost": (lambda shape: shape.left + shape.width / 2, False),
    "rightmost": (lambda shape: shape.left + shape.width / 2, True),
    "topmost": (lambda shape: shape.top + shape.width / 2, False),
    "bottommost": (lambda shape: shape.top + shape.width / 2, True),
    "largest": (lambda shape: shape.width, True),
    "smallest": (lambda shape: shape.width, False),
}


def meant(scene: Scene, phrase: str) -> list[Shape]:
    """The shapes that a phrase such as `leftmost small striped circle` or `red shapes` fits."""
    shapes, extreme = list(scene.shapes), ""
    for word in phrase.split():
        word = {"crosses": "cross"}.get(word, word[:-1] if word[:-1] in (*KINDS, "shape") else word)
        if word in EXTREMES:
            extreme = word
        elif word in COLOURS:
            shapes = [shape for shape in shapes if shape.colour == word]
        elif word in KINDS:
            shapes = [shape for shape in shapes if shape.kind == word]
        elif word in TEXTURES:
            shapes = [shape for shape in shapes if shape.texture == word]
        elif word in SIZES:
            shapes = [shape for shape in shapes if shape.size == word]
        else:
            assert word in ("shape", "one"), phrase
    if extreme and len(shapes) > 1:
        value, most = EXTREMES[extreme]
        shapes.sort(key=value, reverse=most)
        assert abs(value(shapes[0]) - value(shapes[1])) >= 0.02 * scene.side, f"{phrase}: too close to tell"
        shapes = shapes[:1]
    return shapes


def the(scene: Scene, phrase: str) -> Shape:
    """The only shape that the phrase fits."""
    shapes = meant(scene, phrase)
    assert len(shapes) == 1, f"{len(shapes)} shapes are the {phrase} in {scene}"
    return shapes[0]


def stands(shape: Shape, side: str, other: Shape) -> bool:
    """Whether a person would say so: along the axis that parts the two more."""
    (x, y), (u, v) = shape.centre, other.centre
    if side in ("left of", "right of"):
        return abs(x - u) > abs(y - v) and (x < u) == (side == "left of")
    return abs(y - v) > abs(x - u) and (y < v) == (side == "above")


def beside(scene: Scene, side: str, anchor: Shape) -> Shape:
    """The only shape whose centre lies on that side of the anchor's."""
    axis = 0 if side in ("left of", "right of") else 1
    sign = -1 if side in ("left of", "above") else 1
    there = [s for s in scene.shapes if s is not anchor and sign * (s.centre[axis] - anchor.centre[axis]) > 0]
    assert len(there) == 1 and stands(there[0], side, anchor), f"{len(there)} shapes {side} {anchor}"
    return there[0]


def answer(scene: Scene, question: str) -> str:
    """The answer that the scene gives."""
    attributes = {"color": "colour", "texture": "texture", "size": "size", "shape": "kind"}
    if found := re.fullmatch(rf"what (color|shape) is (?:the shape )?{SIDES} the (.+)\?", question):
        return getattr(beside(scene, found[2], the(scene, found[3])), attributes[found[1]])
    if found := re.fullmatch(rf"what is {SIDES} the (.+)\?", question):
        shape = beside(scene, found[1], the(scene, found[2]))
        return f"{shape.colour} {shape.kind}"
    if found := re.fullmatch(r"what (color|shape|texture|size) is the (.+)\?", question):
        assert not set(found[2].split()) & ({"small", "large", "largest", "smallest"} if found[1] == "size" else set())
        return getattr(the(scene, found[2]), attributes[found[1]])
    if found := re.fullmatch(r"how many (.+) are there\?", question):
        return str(len(meant(scene, found[1])))
    if found := re.fullmatch(r"is there an? (.+)\?", question):
        return "yes" if meant(scene, found[1]) else "no"
    found = re.fullmatch(rf"is the (.+) {SIDES} the (.+)\?", question)
    assert found, question
    shape, other = the(scene, found[1]), the(scene, found[3])
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[found[2]]
    assert stands(shape, found[2], other) or stands(shape, opposite, other), f"{question} is open"
    return "yes" if stands(shape, found[2], other) else "no"


def is_true(scene: Scene, sentence: str) -> bool:
    """Whether a sentence of a text, without its full stop, is true."""
    if found := re.fullmatch(r"there (?:is|are) (\w+) (.+)", sentence):
        return len(meant(scene, found[2])) == NUMBERS[found[1]]
    if found := re.fullmatch(rf"the (.+) is {SIDES} the (.+)", sentence):
        return stands(the(scene, found[1]), found[2], the(scene, found[3]))
    found = re.fullmatch(r"the (.+) is (?:an? )?(.+)", sentence)
    assert found, sentence
    return the(scene, found[1]) in meant(scene, found[2])


def caption_is_true(scene: Scene, caption: str) -> bool:
    """Whether it tells the number of shapes, and the two largest as they stand."""
    count, _, rest = caption.partition(" shape")
    first, *others = (shape for shape in sorted(scene.shapes, key=lambda shape: -shape.width))
    if NUMBERS[count] != len(scene.shapes):
        return False
    if not others:
        return rest == f", a {spelled(first)}"
    found = re.fullmatch(rf"s, a (.+) {SIDES} a (.+)", rest)
    assert found, caption
    return any(
        [found[1], found[3]] == [spelled(shape), spelled(other)] and stands(shape, found[2], other)
        for shape, other in ((first, others[0]), (others[0], first))
    )


def spelled(shape: Shape) -> str:
    """All its words; a plain texture has none."""
    words = (shape.size, "" if shape.texture == "plain" else shape.texture, shape.colour, shape.kind)
    return " ".join(filter(None, words))
