"""Word stems (Porter 1980), with the later changes that NLTK has made its default, as rouge_score takes them."""

from __future__ import annotations

import functools

IRREGULAR = {
    **dict.fromkeys(("sky", "skies"), "sky"),
    **{"dying": "die", "lying": "lie", "tying": "tie", "innings": "inning", "outings": "outing", "cannings": "canning"},
    **{word: word for word in ("news", "inning", "outing", "canning", "howe", "proceed", "exceed", "succeed")},
}
SUFFIXES = {  # step 2 of the paper: what the first suffix that fits becomes
    **{"ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble", "alli": "al"},
    **{"entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al"},
    **{"iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble"},
    **{"fulli": "ful", "logi": "log"},
}
ENDINGS = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}  # step 3
DROPPED = (  # step 4
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate"),
    *("iti", "ous", "ive", "ize"),
)


@functools.lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The stem of a lower-case word: `"orders"` gives `"order"`, `"happily"` gives `"happili"`."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    for step in (_singular, _present, _without_y, _shortened, _shortened_again, _bare, _without_e):
        word = step(word)
    return word


def shape(word: str) -> str:
    """`c` for each consonant and `v` for each vowel; y is a vowel after a consonant."""
    kinds = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and kinds[-1:] == "c")
        kinds += "v" if vowel else "c"
    return kinds


def measure(word: str) -> int:
    """How many times a consonant follows a vowel: Porter's m."""
    return shape(word).count("vc")


def _is_short(word: str) -> bool:
    kinds = shape(word)
    return kinds == "vc" or (kinds[-3:] == "cvc" and word[-1] not in "wxy")


def _singular(word: str) -> str:  # step 1a
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _present(word: str) -> str:  # step 1b
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if measure(word[:-3]) else word
    ending = next((ending for ending in ("ed", "ing") if word.endswith(ending)), None)
    rest = word.removesuffix(ending or "")
    if ending is None or "v" not in shape(rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if rest[-1] == rest[-2:-1] and shape(rest)[-1] == "c":
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if measure(rest) == 1 and _is_short(rest) else rest


def _without_y(word: str) -> str:  # step 1c
    return f"{word[:-1]}i" if word.endswith("y") and len(word) > 2 and shape(word)[-2] == "c" else word


def _shortened(word: str) -> str:  # step 2
    if word.endswith("alli") and measure(word[:-4]):
        return _shortened(word[:-2])
    for suffix, other in SUFFIXES.items():
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            return rest + other if measure(f"{rest}l" if suffix == "logi" else rest) else word
    return word


def _shortened_again(word: str) -> str:  # step 3
    for suffix, other in ENDINGS.items():
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            return rest + other if measure(rest) else word
    return word


def _bare(word: str) -> str:  # step 4
    for suffix in DROPPED:
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            drop = measure(rest) > 1 and (suffix != "ion" or rest[-1] in "st")
            return rest if drop else word
    return word


def _without_e(word: str) -> str:  # step 5
    if word.endswith("e"):
        rest = word[:-1]
        if measure(rest) > 1 or (measure(rest) == 1 and not _is_short(rest)):
            word = rest
    return word[:-1] if word.endswith("ll") and measure(word[:-1]) > 1 else word
