"""A small WordPiece vocabulary and four Chinese captions, so that no test needs the released one."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.cases import caption_row, picture

CAPTIONS = {
    (200, 30, 30): "一面红色的墙",
    (30, 180, 30): "一面绿色的墙",
    (30, 30, 200): "一面蓝色的墙",
    (240, 240, 240): "雪",
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = ("play", "##ing", "##s", "cafe", "n", "'", "t", ".", "?", "，", "##红")


def write_wordpiece(folder: Path, more: str = "") -> Path:
    """Writes `vocab.txt` and `dict.txt` of what the captions, their instruction and `more` need, and English pieces."""
    characters = sorted(set("".join(CAPTIONS.values()) + "图片描述了什么内容" + more))
    pieces = [*SPECIAL, *characters, *PIECES]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    (folder / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")
    return folder


def write_captions(folder: Path, *splits: str) -> Path:
    """Writes `<split>.tsv`, each with a picture of one colour for every caption."""
    folder.mkdir(parents=True)
    rows = [caption_row(n, caption, picture(colour)) for n, (colour, caption) in enumerate(CAPTIONS.items())]
    for split in splits:
        (folder / f"{split}.tsv").write_text("".join(rows), encoding="utf-8")
    return folder
