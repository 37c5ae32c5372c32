"""Order, crops and flips: seeded, vectorised, and equal to a slow reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.contract import Recipe
from bench.data import augment, batch_order, center_crop

PLAIN = Recipe(dataset="cifar10", eps="8/255", preset="quick", source="test")


def recipe(**changes):
    return dataclasses.replace(PLAIN, **changes)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(b=6, c=3, h=10, w=12):
    return torch.randint(1, 256, (b, c, h, w), dtype=torch.uint8, generator=seeded(5))  # never 0: padding is


def windows(image, by, mode, height, width, flip):
    """Every crop of one [C, H, W] image that the recipe allows, by torch's own padding: the slow reference."""
    kind = {"mode": "replicate"} if mode == "edge" else {}
    padded = torch.nn.functional.pad(image[None].float(), (by,) * 4, **kind)[0].byte()
    h, w = padded.shape[1:]
    crops = [padded[:, y : y + height, x : x + width] for y in range(h - height + 1) for x in range(w - width + 1)]
    return crops + [crop.flip(2) for crop in crops] if flip else crops


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_only():
    order = batch_order(1000, seed=3, epoch=7)
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(order, batch_order(1000, seed=3, epoch=7))
    assert torch.equal(order.sort().values, torch.arange(1000))


@pytest.mark.parametrize("other", [{"seed": 4, "epoch": 7}, {"seed": 3, "epoch": 8}, {"seed": 7, "epoch": 3}])
def test_another_seed_or_epoch_gives_another_order(other):
    assert not torch.equal(batch_order(1000, seed=3, epoch=7), batch_order(1000, **other))


def test_order_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    batch_order(10, seed=0, epoch=0)
    assert torch.equal(before, torch.get_rng_state())


@settings(max_examples=40, deadline=None)
@given(
    by=st.integers(0, 3),
    mode=st.sampled_from(["edge", "zeros"]),
    crop=st.sampled_from([0, 4, 10]),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_augmented_image_is_one_of_the_allowed_crops(by, mode, crop, flip, seed):
    """Padding, crop and flip in one gather against torch's own padding and slicing."""
    images = noise()
    out = augment(images, recipe(crop_pad=by, crop_mode=mode, crop=crop, flip=flip), seeded(seed))
    side = (crop, crop) if crop else (10, 12)
    assert out.dtype == torch.uint8 and out.shape == (6, 3, *side)
    for before, after in zip(images, out, strict=True):
        assert any(torch.equal(after, allowed) for allowed in windows(before, by, mode, *side, flip))


def test_every_offset_and_both_mirrors_occur_equally_often():
    """3 x 3 offsets x 2 mirrors over 1800 copies of one image: 100 each, within five standard deviations."""
    image = noise(1, 1, 4, 4)
    out = augment(image.expand(1800, -1, -1, -1), recipe(crop_pad=1, crop_mode="zeros", flip=True), seeded())
    counts = [int((out == allowed).flatten(1).all(1).sum()) for allowed in windows(image[0], 1, "zeros", 4, 4, True)]
    assert sum(counts) == 1800 and all(50 <= count <= 150 for count in counts)


def test_augmentation_is_decided_by_the_generator_alone():
    change = recipe(crop_pad=4, flip=True)
    first = augment(noise(), change, seeded(1))
    torch.rand(3)
    assert torch.equal(first, augment(noise(), change, seeded(1)))
    assert not torch.equal(first, augment(noise(), change, seeded(2)))


def test_a_plain_recipe_changes_nothing_and_draws_nothing():
    generator = seeded()
    before = generator.get_state()
    images = noise()
    assert torch.equal(augment(images, PLAIN, generator), images) and torch.equal(before, generator.get_state())


def test_inputs_are_not_written_to():
    images = noise()
    kept = images.clone()
    augment(images, recipe(crop_pad=2, crop_mode="zeros", flip=True), seeded())
    assert torch.equal(images, kept)


def test_center_crop_takes_the_middle():
    image = torch.arange(36).reshape(1, 1, 6, 6)
    assert center_crop(image, 2).flatten().tolist() == [14, 15, 20, 21]
    assert center_crop(image, 0) is image


@pytest.mark.parametrize("call", [lambda x: center_crop(x, 13), lambda x: augment(x, recipe(crop=20), seeded())])
def test_a_crop_larger_than_the_image_is_refused(call):
    with pytest.raises(ValueError, match="larger than the 10 x 12 image"):
        call(noise())


@pytest.mark.parametrize("bad", [noise().float(), noise()[0]])
def test_only_byte_batches_are_augmented(bad):
    with pytest.raises(ValueError, match="uint8 \\[B, C, H, W\\] is needed"):
        augment(bad, recipe(flip=True), seeded())


@pytest.mark.gpu
def test_augmentation_on_a_gpu_does_not_wait_for_it():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images, generator = noise().cuda(), torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(images, recipe(crop_pad=2, crop_mode="zeros", flip=True), generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
