"""Words as caption metrics count them."""

from __future__ import annotations

import re

from ...data.text import space_characters

# What coco-caption's PTB tokenizer splits: it's -> it 's, don't -> do n't, cannot -> can not.
CONTRACTIONS = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))(?!\w)")
FUSED = re.compile(r"\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")
# Hiragana, katakana, and the signs that go with kanji (々〆〇); ideographs are data.text's.
KANA = "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
PART = rf"[^\W{KANA}]"  # of a word
LETTER = rf"(?!\d|_){PART}"
TOKENS = re.compile(
    r"n't(?!\w)|'(?:s|m|d|re|ve|ll)(?!\w)"
    r"|\d+(?:[.,:/]\d+)+"  # 3.5, 1,000, 10:30
    rf"|(?:{LETTER}\.){{2,}}(?:{LETTER}(?!\w))?"  # u.s., u.s.a
    rf"|[{KANA}]"
    rf"|{PART}+(?:[-/&'.]{PART}+)*"  # black-and-white
    r"|[^\w\s]"
)
PUNCTUATION = frozenset(".?!,:;-–—…'\"`´‘“”()[]{}" + "。．，、？！：；·・～「」『』《》〈〉【】〔〕（）［］｛｝")


def tokenize(text: str) -> list[str]:
    """Lower-case words as the Penn Treebank splits them, punctuation dropped (coco-caption's PTBTokenizer).

    Of Chinese and Japanese each character is a token, with spaces around it (as a "bert" vocabulary decodes) or
    without; coco-caption would take a whole phrase for one word. Korean has spaces, and is split there.
    """
    text = CONTRACTIONS.sub(r" \1", space_characters(text.lower()).replace("’", "'"))
    if "nn" in text or "tt" in text or "mm" in text:
        text = FUSED.sub(lambda match: " ".join(part for part in match.groups() if part), text)
    return [token for token in TOKENS.findall(text) if token not in PUNCTUATION]
