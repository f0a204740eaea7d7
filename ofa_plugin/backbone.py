"""Trains an image backbone on a detection file, so that pretraining does not begin with one that sees nothing.

Official OFA starts from a ResNet that has learned ImageNet. From a random one the mixture of eight tasks learns what
shows anywhere in a picture (a colour), and then stands for long: a form shows in its own patch only, attention does not
yet know which patch that is, and without it no patch learns to tell forms. Here every patch in the middle of a box says
the words of the object's name, through one linear layer that is thrown away: no attention in between. Other patches are
not told to be silent: what they happen to know of an object helps attention that is still flat (measured).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import augment
from .data.boxes import as_array
from .data.image import PictureLoader, normalise
from .data.tsv import TSVStore
from .errors import UserError
from .models.ofa.resnet import RESNETS, ResNet
from .precision import autocast_type
from .tasks.base import PATCH_PIXELS
from .tasks.detection import DetectionBuilder

HELD_OUT, MOST_HELD_OUT = 0.05, 256  # share of the rows that only judge, and their most
WARM_UP = 50  # batches
CLIP = 1.0  # norm of the gradient


class Plan(NamedTuple):
    """How long and how to train.

    Attributes:
        kind: a name in `RESNETS`.
        side: pixels that a picture is resized to.
        batches: optimiser steps.
        batch_size: pictures of a step.
        lr: the highest learning rate of Adam: after the warm-up it falls linearly to nothing.
        seed: of the weights, and of what is drawn for each row.
        autocast: as `--autocast`.
        workers: processes that read pictures.
    """

    kind: str
    side: int
    batches: int
    batch_size: int
    lr: float
    seed: int
    autocast: str
    workers: int


class Named(NamedTuple):
    """Pictures and the names in them: B pictures with N objects in all, V words known.

    Attributes:
        images: uint8[B, 3, S, S].
        places: int64[N, 3], picture, row and column of the patch in the middle of each object's box.
        words: float32[N, V], 1 for each word of its name.
    """

    images: Tensor
    places: Tensor
    words: Tensor


class NamedObjects(torch.utils.data.Dataset):
    """The rows of a detection file as pictures, patches and words.

    Args:
        path: the TSV: id, picture, objects.
        side: pixels of the square that a picture becomes.
        seed: of what is drawn.

    Raises:
        UserError: the file has no object, or too few rows.
        BadRow: a row that cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str], side: int, seed: int):
        store = TSVStore(path, DetectionBuilder.columns)
        self.builder = DetectionBuilder(store, None, None, False, PictureLoader(Path(path).parent, side))
        self.side, self.seed = side, seed
        vocabulary: dict[str, int] = {}
        for index in range(len(store)):
            for one in self.builder.listed(index, store[index]):
                for word in _words(one.name):
                    vocabulary.setdefault(word, len(vocabulary))
        self.vocabulary = vocabulary
        if not vocabulary:
            raise UserError(f"{path}: no object in any row: give a detection file, whose third column names objects")
        held_out = min(MOST_HELD_OUT, max(1, int(len(store) * HELD_OUT)))
        if len(store) < 2:
            raise UserError(f"{path}: one row is too few: one is held out, to judge by")
        order = np.random.default_rng([seed, 0]).permutation(len(store))
        self.learned, self.held_out = order[held_out:], order[:held_out]

    def __getitem__(self, key: tuple[int, int | None]) -> Named:
        """Row and draw (None: nothing is drawn) to one picture, turned round or not."""
        index, draw = key
        row = self.builder.store[index]
        picture = self.builder.picture(index, row.image)
        objects, _, _ = self.builder.objects(index, row, picture.size)
        boxes = as_array([one.box for one in objects])
        if draw is not None and np.random.default_rng([self.seed, draw, index]).random() < 0.5:
            picture, boxes = augment.horizontal_flip(picture, boxes)
        picture, boxes, _ = augment.square(picture, boxes, self.side)
        middle = (boxes.reshape(-1, 2, 2).mean(1) / PATCH_PIXELS).astype(np.int64)  # [N, x and y]
        middle = np.minimum(middle, (self.side - 1) // PATCH_PIXELS)
        places = np.stack([np.zeros(len(boxes), np.int64), middle[:, 1], middle[:, 0]], 1)
        words = torch.zeros(len(boxes), len(self.vocabulary))
        for number, one in enumerate(objects):
            words[number, [self.vocabulary[word] for word in _words(one.name)]] = 1
        return Named(augment.pixels(picture)[None], torch.from_numpy(places), words)

    def batches(self, count: int, batch_size: int) -> Iterator[list[tuple[int, int]]]:
        """`count` batches of keys, through the learned rows again and again, each time in a new order."""
        keys, epoch = [], 0
        for _ in range(count):
            while len(keys) < batch_size:
                epoch += 1
                order = np.random.default_rng([self.seed, epoch]).permutation(self.learned)
                keys += [(int(row), epoch) for row in order]
            yield keys[:batch_size]
            keys = keys[batch_size:]


def train_backbone(path: str | os.PathLike[str], plan: Plan, progress: Callable[[str], None]) -> tuple[ResNet, float]:
    """Learns the names of a detection file's objects at the patches in their middle.

    Args:
        path: the TSV: id, picture, objects.
        plan: how.
        progress: is called after every step with a few words on it.

    Returns:
        The backbone, on the CPU, and the share of held-out objects whose words are the likeliest ones.

    Raises:
        UserError: see `NamedObjects`, or there is no backbone of that name.
        BadRow: a row that cannot be used.
    """
    if plan.kind not in RESNETS:
        raise UserError(f"--resnet-type {plan.kind} cannot be trained so: take one of {', '.join(RESNETS)}")
    data = NamedObjects(path, plan.side, plan.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        backbone = ResNet(plan.kind)
        reader = nn.Linear(backbone.out_channels, len(data.vocabulary))
    kind = autocast_type(plan.autocast, device.type)
    model = nn.ModuleList([backbone, reader]).to(device)
    # Not Adam's usual 0.999: in so few steps the second moment would remember the random start until the end.
    optimiser = torch.optim.Adam(model.parameters(), lr=plan.lr, betas=(0.9, 0.98))
    share = lambda step: min((step + 1) / WARM_UP, 1 - step / plan.batches)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)

    def logits(batch: Named) -> Tensor:
        pictures = normalise(batch.images.to(device))
        with torch.autocast(device.type, kind, enabled=kind is not None):
            features = backbone(pictures)  # [B, C, S / 16, S / 16]
        picture, row, column = batch.places.to(device).unbind(1)
        return reader(features[picture, :, row, column].float())  # [N, V]

    loader = torch.utils.data.DataLoader(
        data,
        batch_sampler=list(data.batches(plan.batches, plan.batch_size)),
        collate_fn=_joined,
        num_workers=plan.workers,
    )
    loss = torch.zeros(())
    for batch in loader:
        if len(batch.words):  # a picture may show nothing that has a name
            words = batch.words.to(device)
            loss = F.cross_entropy(logits(batch), words / words.sum(1, keepdim=True))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
        schedule.step()
        progress(f"loss {loss.item():.2f}")

    model.eval()
    right = total = 0
    with torch.no_grad():
        for start in range(0, len(data.held_out), plan.batch_size):
            batch = _joined([data[int(row), None] for row in data.held_out[start : start + plan.batch_size]])
            if len(batch.words):
                right += _right(logits(batch).cpu(), batch.words)
                total += len(batch.words)
    return backbone.cpu(), right / max(total, 1)


def _words(name: str) -> list[str]:
    return name.lower().split()


def _joined(samples: Sequence[Named]) -> Named:
    places = [
        torch.cat([torch.full_like(one.places[:, :1], at), one.places[:, 1:]], 1) for at, one in enumerate(samples)
    ]
    images, words = (torch.cat([getattr(one, name) for one in samples]) for name in ("images", "words"))
    return Named(images, torch.cat(places), words)


def _right(logits: Tensor, words: Tensor) -> int:
    """How many of N objects have their own words, and no other, as the likeliest: float[N, V], float[N, V]."""
    least = logits.masked_fill(words == 0, torch.inf).amin(1)
    other = logits.masked_fill(words != 0, -torch.inf).amax(1)
    return int((least > other).sum())
