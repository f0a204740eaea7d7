"""True sentences about scenes: captions, questions, referring expressions and texts.

A noun phrase is a `Phrase`; whether it is true of a shape, and which shapes it singles out, is decided there and
nowhere else. Nothing is said that the picture leaves open: superlatives and relations need a clear margin, a question
one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .scene import (
    APART,
    CLEAR,
    COLOURS,
    KINDS,
    MOST_SHAPES,
    SEEN_PAIRS,
    SIZES,
    TEXTURES,
    UNSEEN_PAIRS,
    Scene,
    Shape,
    pick,
)

COUNT_WORDS = ("no", "one", "two", "three", "four", "five", "six")
TEXT_WORDS = (10, 60)  # the fewest and the most of a text
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
OBJECTS = tuple(
    f"{size} {texture} {colour} {kind}".replace(" plain ", " ")
    for size in SIZES
    for texture in TEXTURES
    for colour, kind in SEEN_PAIRS
)
"""Every shape as captions name it, unseen pairs left out."""
ANSWERS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLOURS),
    "shape": KINDS,
    "how many": tuple(map(str, range(MOST_SHAPES + 1))),
    "yes/no": ("yes", "no"),
    "size": SIZES,
    "texture": TEXTURES,
    "other": tuple(" ".join(pair) for pair in SEEN_PAIRS),
}
"""The answers of each type; `other` names a shape by colour and kind."""

SUPERLATIVES: dict[str, Callable[[Shape], float]] = {
    "leftmost": lambda shape: shape.centre[0],
    "rightmost": lambda shape: -shape.centre[0],
    "topmost": lambda shape: shape.centre[1],
    "bottommost": lambda shape: -shape.centre[1],
    "largest": lambda shape: -shape.width,
    "smallest": lambda shape: shape.width,
}
"""The shape with the least value is meant, where no other comes near it."""


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: what it says of a shape, "" for what it leaves open. A kind left open is called a shape."""

    size: str = ""
    texture: str = ""
    colour: str = ""
    kind: str = ""
    superlative: str = ""

    def fits(self, shape: Shape) -> bool:
        """Whether every attribute named is the shape's; a superlative is left to `among`."""
        return (
            self.size in ("", shape.size)
            and self.texture in ("", shape.texture)
            and self.colour in ("", shape.colour)
            and self.kind in ("", shape.kind)
        )

    def among(self, scene: Scene) -> list[Shape]:
        """The shapes of the scene that are meant; with a superlative one of at least two, or none."""
        shapes = [shape for shape in scene.shapes if self.fits(shape)]
        if not self.superlative:
            return shapes
        if len(shapes) < 2:
            return []
        value = SUPERLATIVES[self.superlative]
        first, second = sorted(shapes, key=value)[:2]
        if self.superlative in ("largest", "smallest"):
            clear = max(first.width, second.width) >= APART * min(first.width, second.width)
        else:
            clear = value(second) - value(first) >= CLEAR * scene.side
        return [first] if clear else []

    def text(self, noun: str = "shape") -> str:
        """The words without an article; `noun` stands for a kind left open."""
        words = (self.superlative, self.size, self.texture, self.colour, self.kind or noun)
        return " ".join(word for word in words if word)

    @property
    def plural(self) -> str:
        """`red circles`."""
        text = self.text()
        return text + ("es" if text.endswith("s") else "s")


@dataclass(frozen=True)
class Question:
    """A question, its only answer, and the answer's type: a key of `ANSWERS`."""

    text: str
    answer: str
    type: str


def with_article(text: str) -> str:
    """`a red circle`, `an orange star`."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def full_name(shape: Shape) -> str:
    """`large red circle`, `small striped blue square`: a plain texture goes without saying."""
    return _phrase(shape, ("size", "colour", "kind") if shape.texture == "plain" else _ALL).text()


def counted(scene: Scene) -> str:
    """`one shape`, `four shapes`."""
    count = len(scene.shapes)
    return f"{COUNT_WORDS[count]} {'shape' if count == 1 else 'shapes'}"


def captions(scene: Scene) -> list[str]:
    """Number of shapes and the two largest, in each order; the first, plainest one begins with the largest."""
    if len(scene.shapes) == 1:
        return [f"one shape, {with_article(full_name(scene.shapes[0]))}"]
    told = []
    for shape, other in (scene.shapes[:2], scene.shapes[1::-1]):
        names = with_article(full_name(shape)), with_article(full_name(other))
        told.append(f"{counted(scene)}, {names[0]} {scene.relation(shape, other)} {names[1]}")
    return told


def named_objects(scene: Scene) -> list[str]:
    """The shapes of the captions, as named there."""
    return [full_name(shape) for shape in scene.shapes[:2]]


_ALL = ("size", "texture", "colour", "kind")
_EXPRESSIONS: tuple[tuple[tuple[str, ...], bool], ...] = (
    (("colour", "kind"), False),
    (("size", "kind"), False),
    (("texture", "kind"), False),
    (("kind",), True),
    (("size", "colour", "kind"), False),
    (("texture", "colour", "kind"), False),
    (("size", "texture", "kind"), False),
    (("colour", "kind"), True),
    (_ALL, False),
)
"""What a referring expression may name, and whether a superlative comes first: shortest first."""


def expression(scene: Scene, shape: Shape) -> str | None:
    """The first of the forms above that singles the shape out, `the red circle`; None where none does.

    It depends on nothing but the scene, so that naming a region has one right answer.
    """
    return next((f"the {phrase.text()}" for phrase in _singling(scene, shape, _EXPRESSIONS)), None)


def ask(scene: Scene, draw: np.random.Generator, about: Shape | None = None) -> Question:
    """One question, its type drawn first.

    Args:
        scene: what is asked about.
        draw: where all chance comes from.
        about: a shape that the question must be about; such a question also dares to name unseen pairs.
    """
    names = list(_ASKERS)
    weights = np.array([_ASKERS[name] for name in names], float)
    for number in draw.choice(len(names), len(names), replace=False, p=weights / weights.sum()):
        question = names[number](scene, draw, about)
        if question is not None:
            return question
    raise AssertionError("counting is always possible")


def ask_region(shape: Shape, draw: np.random.Generator) -> Question:
    """A question about the shape in a marked region."""
    word, value = pick(draw, _attributes(shape))
    text = "what kind of shape is in the region?" if word == "shape" else f"what {word} is the shape in the region?"
    return Question(text, value, word)


def describe(scene: Scene, draw: np.random.Generator) -> str:
    """Several sentences, `TEXT_WORDS` together: what is in the scene, and a little of what is not."""
    sentences = [f"there {'is' if len(scene.shapes) == 1 else 'are'} {counted(scene)}."]
    wanted = int(draw.integers(3, 8))
    tellers = (_tell_relation, _tell_attribute, _tell_superlative, _tell_count, _tell_absence)
    for _ in range(100):
        words = sum(len(sentence.split()) for sentence in sentences)
        if len(sentences) >= wanted and words >= TEXT_WORDS[0]:
            break
        sentence = pick(draw, tellers)(scene, draw)
        if sentence and sentence not in sentences and words + len(sentence.split()) <= TEXT_WORDS[1]:
            sentences.append(sentence)
    return " ".join(sentences)


# ----------------------------------------------------------------------------------------------------------------------
# What the questions and sentences are made of


def _phrase(shape: Shape, attributes: Sequence[str]) -> Phrase:
    return Phrase(**{attribute: getattr(shape, attribute) for attribute in attributes})


def _singling(scene: Scene, shape: Shape, forms: Sequence[tuple[tuple[str, ...], bool]]) -> Iterator[Phrase]:
    """The phrases of these forms that mean this shape and no other."""
    for attributes, extreme in forms:
        plain = _phrase(shape, attributes)
        for phrase in [replace(plain, superlative=word) for word in SUPERLATIVES] if extreme else [plain]:
            if phrase.among(scene) == [shape]:
                yield phrase


def _reference(scene: Scene, shape: Shape, draw: np.random.Generator, without: str = "") -> Phrase | None:
    """A short phrase, without one attribute, that means only this shape."""
    forms = [
        (tuple(name for name in _ALL if name in chosen), extreme)
        for chosen, extreme in _REFERENCES
        if without not in chosen
    ]
    found = list(_singling(scene, shape, forms))
    if not found:
        return None
    shortest = min(len(phrase.text().split()) for phrase in found)
    return pick(draw, [phrase for phrase in found if len(phrase.text().split()) == shortest])


_REFERENCES: tuple[tuple[tuple[str, ...], bool], ...] = (
    (("kind",), False),
    (("colour",), False),
    (("size",), False),
    (("texture",), False),
    ((), True),
    *_EXPRESSIONS,
    (("size", "colour"), False),
    (("texture", "colour"), False),
    (("size", "texture"), False),
    (("size", "texture", "colour"), False),
    (("colour",), True),
)


def _attributes(shape: Shape) -> tuple[tuple[str, str], ...]:
    """Each attribute: the word to ask for it, which is also the answer's type, and its value."""
    return ("color", shape.colour), ("shape", shape.kind), ("texture", shape.texture), ("size", shape.size)


def _ask_attribute(scene: Scene, draw: np.random.Generator, about: Shape | None, number: int) -> Question | None:
    shapes = [about] if about else [scene.shapes[n] for n in draw.permutation(len(scene.shapes))]
    for shape in shapes:
        word, value = _attributes(shape)[number]
        phrase = _reference(scene, shape, draw, without=("colour", "kind", "texture", "size")[number])
        if phrase is not None and not (word == "size" and phrase.superlative in ("largest", "smallest")):
            return Question(f"what {word} is the {phrase.text('one' if word == 'shape' else 'shape')}?", value, word)
    return None


def _ask_colour(scene: Scene, draw: np.random.Generator, about: Shape | None) -> Question | None:
    return _ask_attribute(scene, draw, about, 0)


def _ask_kind(scene: Scene, draw: np.random.Generator, about: Shape | None) -> Question | None:
    return _ask_attribute(scene, draw, about, 1)


def _ask_texture(scene: Scene, draw: np.random.Generator, about: Shape | None) -> Question | None:
    return _ask_attribute(scene, draw, about, 2)


def _ask_size(scene: Scene, draw: np.random.Generator, about: Shape | None) -> Question | None:
    return _ask_attribute(scene, draw, about, 3)


def _ask_count(scene: Scene, draw: np.random.Generator, about: Shape | None) -> Question:
    """The number is drawn before what is counted, so that no number is rare."""
    by_count: dict[int, list[Phrase]] = {}
    form = pick(draw, _COUNTED[:3] if about else _COUNTED)
    everything = () if about else (Phrase(),)
    for phrase in (*everything, *_every_phrase(form, unseen=about is not None)):
        if about is None or phrase.fits(about):
            by_count.setdefault(len(phrase.among(scene)), []).append(phrase)
    count = pick(draw, sorted(by_count))
    return Question(f"how many {pick(draw, by_count[count]).plural} are there?", str(count), "how many")


_COUNTED = (("kind",), ("colour",), ("colour", "kind"), ("kind",), ("colour",), ("size",), ("texture",))


def _every_phrase(form: tuple[str, ...], unseen: bool) -> Iterator[Phrase]:
    """All phrases that name these attributes; those with an unseen pair only if wanted."""
    values = {"size": SIZES, "texture": TEXTURES, "colour": tuple(COLOURS), "kind": KINDS}
    for size in values["size"] if "size" in form else ("",):
        for texture in values["texture"] if "texture" in form else ("",):
            for colour in values["colour"] if "colour" in form else ("",):
                for kind in values["kind"] if "kind" in form else ("",):
                    if unseen or (colour, kind) not in UNSEEN_PAIRS:
                        yield Phrase(size, texture, colour, kind)


_EXISTENCE = (
    ("colour", "kind"),
    ("colour", "kind"),
    ("colour", "kind"),
    ("size", "kind"),
    ("texture", "kind"),
    ("size", "colour", "kind"),
    ("texture", "colour", "kind"),
)


def _ask_existence(scene: Scene, draw: np.random.Generator, about: Shape | None) -> Question | None:
    """As often yes as no; what is absent is made of what is present wherever that can be."""
    if draw.random() < 0.5:
        form = ("colour", "kind") if about else pick(draw, _EXISTENCE)
        phrase = _phrase(about or pick(draw, scene.shapes), form)
        return Question(f"is there {with_article(phrase.text())}?", "yes", "yes/no")
    absent = _absent(scene, draw, unseen=about is not None)
    return absent and Question(f"is there {with_article(absent.text())}?", "no", "yes/no")


def _absent(scene: Scene, draw: np.random.Generator, unseen: bool) -> Phrase | None:
    """A phrase that fits no shape, though each of its words fits one, or all but one of its words fit one.

    Args:
        scene: where it is absent.
        draw: where all chance comes from.
        unseen: whether it names an unseen pair; else it never does.
    """
    form = ("colour", "kind") if unseen else pick(draw, _EXISTENCE)
    phrases = [phrase for phrase in _every_phrase(form, unseen) if not phrase.among(scene)]
    if unseen:
        phrases = [phrase for phrase in phrases if (phrase.colour, phrase.kind) in UNSEEN_PAIRS]
    for near in (_made_of_what_is_there, _off_by_one):
        found = [phrase for phrase in phrases if near(phrase, scene)]
        if found:
            return pick(draw, found)
    return None


def _made_of_what_is_there(phrase: Phrase, scene: Scene) -> bool:
    return all(
        any(getattr(phrase, name) in ("", getattr(shape, name)) for shape in scene.shapes)
        for name in ("size", "texture", "colour", "kind")
    )


def _off_by_one(phrase: Phrase, scene: Scene) -> bool:
    return any(
        sum(getattr(phrase, name) not in ("", getattr(shape, name)) for name in _ALL) == 1 for shape in scene.shapes
    )


def _ask_relation(scene: Scene, draw: np.random.Generator, about: Shape | None) -> Question | None:
    """As often yes as no; only along the axis that parts the two."""
    found = _related_pair(scene, draw, about)
    if found is None:
        return None
    first, relation, second = found
    yes = draw.random() < 0.5
    text = f"is the {first.text()} {relation if yes else INVERSE[relation]} the {second.text()}?"
    return Question(text, "yes" if yes else "no", "yes/no")


def _related_pair(
    scene: Scene, draw: np.random.Generator, about: Shape | None = None
) -> tuple[Phrase, str, Phrase] | None:
    """Two shapes by phrases that single them out without a superlative, and how the first stands to the second."""
    count = len(scene.shapes)
    pairs = [(scene.shapes[n // count], scene.shapes[n % count]) for n in draw.permutation(count * count)]
    for shape, other in pairs:
        relation = scene.relation(shape, other) if shape is not other else None
        if relation is None or (about and about not in (shape, other)):
            continue
        phrases = [next(_singling(scene, each, _RELATED), None) for each in (shape, other)]
        if phrases[0] and phrases[1]:
            return phrases[0], relation, phrases[1]
    return None


_RELATED = tuple(form for form in _EXPRESSIONS if not form[1])


def _ask_beside(scene: Scene, draw: np.random.Generator, about: Shape | None) -> Question | None:
    """What stands on one side of a shape, where exactly one does."""
    for number in draw.permutation(len(scene.shapes)):
        anchor = scene.shapes[number]
        phrase = next(_singling(scene, anchor, _RELATED), None)
        if phrase is None:
            continue
        for relation in (tuple(INVERSE)[n] for n in draw.permutation(4)):
            shape = _only_one_beside(scene, anchor, relation)
            if shape is None or (about and about not in (shape, anchor)):
                continue
            where = f"{relation} the {phrase.text()}?"
            if draw.random() < 0.6 and shape.pair not in UNSEEN_PAIRS:
                return Question(f"what is {where}", " ".join(shape.pair), "other")
            word, value = _attributes(shape)[draw.integers(2)]
            return Question(f"what {word} is {'the shape ' if word == 'color' else ''}{where}", value, word)
    return None


def _only_one_beside(scene: Scene, anchor: Shape, relation: str) -> Shape | None:
    """The one shape that stands so to the anchor, where every other clearly lies on the other side."""
    axis, sign = (0 if relation in ("left of", "right of") else 1), (-1 if relation in ("left of", "above") else 1)
    beside = []
    for shape in scene.shapes:
        if shape is anchor:
            continue
        offset = sign * (shape.centre[axis] - anchor.centre[axis])
        if offset > 0 and scene.relation(shape, anchor) == relation:
            beside.append(shape)
        elif offset > -CLEAR * scene.side / 2:
            return None
    return beside[0] if len(beside) == 1 else None


_ASKERS: dict[Callable[[Scene, np.random.Generator, Shape | None], Question | None], float] = {
    _ask_colour: 0.19,
    _ask_count: 0.19,
    _ask_existence: 0.18,
    _ask_relation: 0.14,
    _ask_kind: 0.12,
    _ask_beside: 0.08,
    _ask_texture: 0.05,
    _ask_size: 0.05,
}
"""Kinds of questions, and how often each is tried first."""


def _tell_relation(scene: Scene, draw: np.random.Generator) -> str | None:
    found = _related_pair(scene, draw)
    return found and f"the {found[0].text()} is {found[1]} the {found[2].text()}."


def _tell_attribute(scene: Scene, draw: np.random.Generator) -> str | None:
    shape, attribute = pick(draw, scene.shapes), pick(draw, _ALL)
    phrase = _reference(scene, shape, draw, without=attribute)
    if phrase is None or (attribute == "size" and phrase.superlative in ("largest", "smallest")):
        return None
    value = getattr(shape, attribute)
    return f"the {phrase.text('one')} is {with_article(value) if attribute == 'kind' else value}."


def _tell_superlative(scene: Scene, draw: np.random.Generator) -> str | None:
    phrase = Phrase(superlative=pick(draw, tuple(SUPERLATIVES)))
    shapes = phrase.among(scene)
    return f"the {phrase.text()} is {with_article(full_name(shapes[0]))}." if shapes else None


def _tell_count(scene: Scene, draw: np.random.Generator) -> str | None:
    phrase = _phrase(pick(draw, scene.shapes), (pick(draw, _ALL),))
    count = len(phrase.among(scene))
    if count == 1:
        return f"there is one {phrase.text()}."
    return f"there are {COUNT_WORDS[count]} {phrase.plural}."


def _tell_absence(scene: Scene, draw: np.random.Generator) -> str | None:
    absent = _absent(scene, draw, unseen=False)
    return absent and f"there is no {absent.text()}."
