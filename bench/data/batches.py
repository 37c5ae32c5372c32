"""Batches on the device: a seeded order, random crops and flips, centre crops. Vectorised, no worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..seeding import seed_of

if TYPE_CHECKING:
    from ..contract import Recipe


def batch_order(n: int, *, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """A permutation of 0..n-1 that depends on (seed, epoch) only, not on the device or on what ran before.

    Returns:
        [n] int64 on `device`.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
    return torch.randperm(n, generator=generator).to(device)


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Random crop after padding, random smaller crop, random horizontal flip, as the recipe says; no host sync.

    Args:
        images: uint8 [B, C, H, W].
        recipe: its `crop_pad`, `crop_mode` ("edge" repeats the border, "zeros" is black), `crop` (side of what the
            network sees, 0 = whole) and `flip`.
        generator: on the device of `images`; decides everything. Draws nothing where the recipe asks for nothing.

    Returns:
        uint8 [B, C, S, S'] with S = S' = recipe.crop, or [B, C, H, W].

    Raises:
        ValueError: not uint8 [B, C, H, W], or a crop larger than the padded image.
    """
    _check(images)
    b, c, h, w = images.shape
    by, side = recipe.crop_pad, recipe.crop
    out_h, out_w = (side, side) if side else (h, w)
    spare_h, spare_w = h + 2 * by - out_h, w + 2 * by - out_w
    if spare_h < 0 or spare_w < 0:
        raise ValueError(f"crop = {side} is larger than the {h} x {w} image padded by {by}")
    if not (spare_h or spare_w or recipe.flip):
        return images
    device = images.device
    rows = torch.arange(out_h, device=device).expand(b, out_h)  # positions in the padded image, [B, S]
    columns = torch.arange(out_w, device=device).expand(b, out_w)  # [B, S']
    if recipe.flip:
        mirrored = torch.randint(2, (b, 1), generator=generator, device=device, dtype=torch.bool)
        columns = torch.where(mirrored, columns.flip(1), columns)
    if spare_h or spare_w:
        rows = rows + torch.randint(spare_h + 1, (b, 1), generator=generator, device=device)
        columns = columns + torch.randint(spare_w + 1, (b, 1), generator=generator, device=device)
    if by and recipe.crop_mode == "zeros":
        images = pad(images, (by, by, by, by))
        w += 2 * by
    elif by:  # edge: no padded copy, clamped positions read the border again
        rows, columns = (rows - by).clamp_(0, h - 1), (columns - by).clamp_(0, w - 1)
    # one gather does crop, padding and flip: 2.6 ms for 512 CIFAR images on a core, against 9 for pad, crop, flip apart
    index = (rows[:, :, None] * w + columns[:, None, :]).reshape(b, 1, -1).expand(-1, c, -1)  # [B, C, S * S']
    return images.reshape(b, c, -1).gather(2, index).view(b, c, out_h, out_w)


def center_crop(images: Tensor, side: int) -> Tensor:
    """The middle side x side of every image, [B, C, H, W] -> [B, C, side, side]; 0 leaves them whole.

    An odd rest leaves the extra row and column at the bottom and right.

    Raises:
        ValueError: side is larger than the images.
    """
    h, w = images.shape[-2:]
    if not side:
        return images
    if side > h or side > w:
        raise ValueError(f"crop = {side} is larger than the {h} x {w} image")
    top, left = (h - side) // 2, (w - side) // 2
    return images[..., top : top + side, left : left + side]


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; uint8 [B, C, H, W] is needed")
