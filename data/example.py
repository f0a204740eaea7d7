"""One training pair, unpadded, and how a list of them becomes the batch that model, criterion and generator share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .image import normalise


@dataclass
class Example:
    """What a builder makes of a row: ids without padding, the picture, and what the metric wants to see.

    Attributes:
        row: number in the file, from 0.
        uniq_id: the row's id, as text.
        place: `file:line`, for messages.
        source: int64[S], with bos and eos.
        target: int64[T], ending in eos, unless a closed answer set leaves no other end (`AnsweringBuilder.learns_end`).
        prompt: int64[P], what the decoder is given before it answers, beginning with bos; None: bos alone.
        image: uint8[3, h, w], or None for a text task.
        confidence: weight of the example's loss.
        kind: which of its task's kinds of example it is, where the task has several.
        writes_codes: whether the target is image codes, which the decoder gives positions on a grid.
        seed: from (seed, epoch, row), for what the model draws for the example: which patches it keeps.
        previous: int64[T - 1], what the decoder is shown of the target in training where that is not the target itself.
        unscored: how many positions the target begins with that have no loss; its eos always has.
        hole: side in pixels of the square in the middle of the picture that the model must not see.
        erased: top, left and float32[3, h, w]: what stands there in the normalised picture instead; None: nothing does.
        notes: what was put right on the way, in words.
        scale: pixels of `image` for each pixel of the stored picture, along x and y.
        error: why the row could not be used, where bad rows are reported in their place; else None.
        counts: what was put right on the way, e.g. {"clamped_boxes": 1}; the log adds these up.
        allowed: for each target position the ids that a closed answer set admits there; None: no closed set.
        choices: the row's own answers, each its ids without bos and eos; None: it has no answers of its own.
        reference: rides along, untouched, to the metric; None: no reference.
        reference_tokens: int64[R], its printable form for the `T-` line of `fairseq-generate`; None: the target.
    """

    row: int
    uniq_id: str
    place: str
    source: Tensor
    target: Tensor
    prompt: Tensor | None = None
    image: Tensor | None = None
    confidence: float = 1.0
    kind: str = ""
    writes_codes: bool = False
    seed: int = 0
    previous: Tensor | None = None
    unscored: int = 0
    hole: int = 0
    erased: tuple[int, int, Tensor] | None = None
    notes: tuple[str, ...] = ()
    scale: tuple[float, float] = (1.0, 1.0)
    error: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    allowed: list[list[int]] | None = None
    choices: tuple[tuple[int, ...], ...] | None = None
    reference: Any = None
    reference_tokens: Tensor | None = None


def pad_right(sequences: list[Tensor], pad: int) -> Tensor:
    """Stacks int64[n] sequences of different length into int64[B, longest], padded on the right with `pad`."""
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad)


def pad_left(sequence: Tensor, count: int, pad: int) -> Tensor:
    """int64[n] to int64[count + n]."""
    return torch.cat([torch.full((count,), pad), sequence])


def collate(examples: list[Example], bos: int, pad: int, imagenet_mean: bool = False) -> dict[str, Any]:
    """Pads examples into a batch.

    Every batch of a task has the same keys, whatever its split, since fairseq may hand a validation batch to the
    training step as a dummy.

    Args:
        examples: at least one; either all or none have an image, and all images have the same size. Either all or none
            write codes.
        bos: id that starts the decoder's input.
        pad: id of padding.
        imagenet_mean: normalise with ImageNet's mean and deviation instead of 0.5 and 0.5.

    Returns:
        `net_input` (`src_tokens` int64[B, S], `src_lengths` int64[B], `prev_output_tokens` int64[B, T], for images
        `patch_images` float32[B, 3, h, w] (of pictures that examples share each once, and `image_rows` int64[B]),
        `patch_masks` bool[B] and `patch_seeds` int64[B], for image codes `code_masks` bool[B]), `target`
        int64[B, T] (pad within the prompt), `prefix_tokens` int64[B, P], the prompts without bos, `conf` float32[B],
        `id` int64[B] row numbers, `nsentences`, `ntokens`, `allowed_tokens` int64[N] with `allowed_counts` int64[B, T]
        (the ids allowed at each position, row after row; a count of 0 leaves the position free), the lists `uniq_ids`,
        `places`, `choices`, `references`, `reference_tokens`, `scales`, `errors` and `notes`, and `counts`, added up.
    """
    prompts = [torch.tensor([bos]) if example.prompt is None else example.prompt for example in examples]
    pairs = zip(examples, prompts, strict=True)
    target = pad_right([pad_left(example.target, len(prompt) - 1, pad) for example, prompt in pairs], pad)  # [B, T]
    for row, example in enumerate(examples):
        if example.unscored:
            start = len(prompts[row]) - 1
            target[row, start : start + min(example.unscored, len(example.target) - 1)] = pad
    shown = [one.target[:-1] if one.previous is None else one.previous for one in examples]
    previous = pad_right([torch.cat(pair) for pair in zip(prompts, shown, strict=True)], pad)  # [B, T]
    net_input = {
        "src_tokens": pad_right([example.source for example in examples], pad),
        "src_lengths": torch.tensor([len(example.source) for example in examples]),
        "prev_output_tokens": previous,
    }
    if examples[0].image is not None:
        pictures = {id(example.image): example for example in examples}  # what is made of one row shares its picture
        net_input["patch_images"] = normalise(torch.stack([one.image for one in pictures.values()]), imagenet_mean)
        for row, one in enumerate(pictures.values()):
            if one.hole:  # the mean colour, which no uint8 is
                top, left = ((side - one.hole) // 2 for side in one.image.shape[1:])
                net_input["patch_images"][row, :, top : top + one.hole, left : left + one.hole] = 0
            if one.erased is not None:
                top, left, noise = one.erased
                height, width = noise.shape[1:]
                net_input["patch_images"][row, :, top : top + height, left : left + width] = noise
        if len(pictures) < len(examples):
            numbers = {name: number for number, name in enumerate(pictures)}
            net_input["image_rows"] = torch.tensor([numbers[id(example.image)] for example in examples])
        net_input["patch_seeds"] = torch.tensor([example.seed for example in examples])
        net_input["patch_masks"] = torch.ones(len(examples), dtype=torch.bool)
    if examples[0].writes_codes:
        net_input["code_masks"] = torch.ones(len(examples), dtype=torch.bool)
    allowed_tokens, allowed_counts = _allowed(examples, [len(prompt) - 1 for prompt in prompts], target.shape)
    return {
        "id": torch.tensor([example.row for example in examples]),
        "nsentences": len(examples),
        "ntokens": int(target.ne(pad).sum()),
        "net_input": net_input,
        "target": target,
        "prefix_tokens": pad_right([prompt[1:] for prompt in prompts], pad),
        "conf": torch.tensor([example.confidence for example in examples], dtype=torch.float32),
        "allowed_tokens": allowed_tokens,
        "allowed_counts": allowed_counts,
        "uniq_ids": [example.uniq_id for example in examples],
        "places": [example.place for example in examples],
        "choices": [example.choices for example in examples],
        "references": [example.reference for example in examples],
        "errors": [example.error for example in examples],
        "scales": [example.scale for example in examples],
        "notes": [note for example in examples for note in example.notes],
        "counts": dict(sum((Counter(example.counts) for example in examples), Counter())),
        "reference_tokens": [
            example.target if example.reference_tokens is None else example.reference_tokens for example in examples
        ],
    }


def _allowed(examples: list[Example], starts: list[int], shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The answer sets' allowed ids, concatenated row-major, and how many belong to each position of [B, T].

    The answer of row b starts at position `starts[b]`.
    """
    counts = torch.zeros(shape, dtype=torch.int64)
    tokens: list[int] = []
    for row, example in enumerate(examples):
        for position, ids in enumerate(example.allowed or (), starts[row]):
            counts[row, position] = len(ids)
            tokens.extend(ids)
    return torch.tensor(tokens, dtype=torch.int64), counts
