import itertools
import math

import pytest
import torch
from torchvision.transforms import v2

from mlprank.datamodules import CIFAR10DataModule, DigitsDataModule
from tests.datamodules.networks import Recorder, quiet_trainer
from tests.datamodules.writers import write_cifar10

EVERYTHING = {
    "random_crop": 4,
    "random_flip": 0.5,
    "auto_augment": "cifar10",
    "random_erasing": 0.5,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
    "repeated_augmentation": 2,
}
SINGLE = [
    {"random_crop": 2},
    {"random_flip": 0.5},
    {"auto_augment": "cifar10"},
    {"auto_augment": "randaugment", "randaugment_magnitude": 15},
    {"auto_augment": "augmix", "augmix_severity": 5},
    {"random_erasing": 0.9},
    {"mixup_alpha": 0.2},
    {"cutmix_alpha": 1.0},
    {"train_transforms": v2.RandomRotation(30)},
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def epoch_of(datamodule, epoch=0):
    loader = datamodule.train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def same(one, other):
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar")
    write_cifar10(folder)
    return {"data_dir": str(folder), "batch_size": 16, "download": False}


@pytest.mark.parametrize("options", [*SINGLE, EVERYTHING])
def test_training_batches_follow_seed_epoch_and_place_and_nothing_else(cifar, options):
    first = epoch_of(CIFAR10DataModule(**cifar, **options))
    before = torch.get_rng_state()
    torch.manual_seed(99)
    assert same(epoch_of(CIFAR10DataModule(**cifar, **options)), first)
    torch.set_rng_state(before)
    plain = {"repeated_augmentation": options.get("repeated_augmentation", 1)}
    assert not same(first, epoch_of(CIFAR10DataModule(**cifar, **plain)))


@pytest.mark.parametrize("options", [*SINGLE, EVERYTHING])
def test_shape_type_and_range_are_kept(cifar, options):
    datamodule = CIFAR10DataModule(**cifar, **options)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (datamodule.mean, datamodule.std))
    for images, labels in epoch_of(datamodule):
        assert images.shape[1:] == (3, 32, 32)
        assert images.dtype == torch.float32
        pixels = images * std + mean
        assert pixels.min() > -1e-4
        assert pixels.max() < 1 + 1e-4
        if options.get("mixup_alpha") or options.get("cutmix_alpha"):
            assert labels.shape == (len(images), 10)
            assert labels.min() >= 0
            assert torch.allclose(labels.sum(1), torch.ones(len(images)))
        else:
            assert labels.dtype == torch.int64


def test_the_same_images_are_augmented_differently_in_another_epoch():
    datamodule = DigitsDataModule(random_erasing=1.0, batch_size=1150)
    ((first, labels),) = epoch_of(datamodule)
    ((second, others),) = epoch_of(datamodule, 1)
    plain = DigitsDataModule(batch_size=1150)
    ((order, _),), ((again, _),) = epoch_of(plain), epoch_of(plain, 1)
    rows = {image.numpy().tobytes(): row for row, image in enumerate(order)}
    assert not same([(first, labels)], [(second, others)])
    pairs = [(first[rows[image.numpy().tobytes()]], changed) for image, changed in zip(again, second, strict=True)]
    assert sum(torch.equal(one, other) for one, other in pairs) < 200


@pytest.mark.parametrize("options", [*SINGLE, EVERYTHING])
def test_evaluation_and_calibration_batches_are_never_augmented(cifar, options):
    plain, augmented = CIFAR10DataModule(**cifar), CIFAR10DataModule(**cifar, **options)
    for name in ("val", "test", "predict", "calibration"):
        loaders = (list(getattr(datamodule, f"{name}_dataloader")()) for datamodule in (plain, augmented))
        assert same(*loaders)


@pytest.mark.parametrize("resumed_at", [1, 3])
def test_a_loader_that_goes_on_within_an_epoch_augments_as_it_would_have(cifar, resumed_at):
    whole = epoch_of(CIFAR10DataModule(**cifar, **EVERYTHING))
    stopped = CIFAR10DataModule(**cifar, **EVERYTHING).train_dataloader()
    list(itertools.islice(stopped, resumed_at))
    resumed = CIFAR10DataModule(**cifar, **EVERYTHING).train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    assert same(list(resumed), whole[resumed_at:])


def test_a_trainer_trains_on_what_the_loader_alone_gives(cifar):
    network, alone = Recorder(3072), Recorder(3072)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(network, datamodule=CIFAR10DataModule(**cifar, **EVERYTHING))
    for epoch in range(2):
        for batch in epoch_of(CIFAR10DataModule(**cifar, **EVERYTHING), epoch):
            alone.training_step(batch, 0)
    assert [total for _, total in network.seen] == [total for _, total in alone.seen]


def test_asking_for_another_loader_while_one_is_in_use_changes_no_draw(cifar):
    datamodule = CIFAR10DataModule(**cifar, **EVERYTHING)
    expected = epoch_of(datamodule)
    batches = []
    for batch in datamodule.train_dataloader():
        next(iter(datamodule.train_dataloader()))
        batches.append(batch)
    assert same(batches, expected)


def test_repeated_images_stand_together_and_differ():
    datamodule = DigitsDataModule(batch_size=6, repeated_augmentation=3, random_erasing=1.0)
    images, labels = epoch_of(datamodule)[0]
    assert labels[:3].unique().numel() == 1
    assert labels[3:].unique().numel() == 1
    assert not torch.equal(images[0], images[1]) or not torch.equal(images[1], images[2])


def augmented(images, *, seeds=1, **options):
    """Return the bytes that images become as some seeds augment them, one after the other."""
    datamodule, labels = DigitsDataModule(**options), torch.zeros(len(images), dtype=torch.int64)
    pixels = torch.cat([datamodule.augment(images, labels, seed)[0] for seed in range(seeds)]) * 255
    assert torch.allclose(pixels, pixels.round(), atol=1e-3)
    return pixels.round().to(torch.uint8)


def test_flipped_images_are_mirrored_as_often_as_asked():
    images = torch.arange(64 * 4, dtype=torch.uint8).view(64, 1, 2, 2)
    flipped, whole = augmented(images, seeds=30, random_flip=0.3), images.repeat(30, 1, 1, 1)
    changed = (flipped != whole).flatten(1).any(1)
    assert torch.equal(flipped[changed], whole[changed].flip(-1))
    assert changed.double().mean() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(augmented(images, random_flip=1.0), images.flip(-1))


def test_crops_are_shifts_by_up_to_the_padding_in_both_directions():
    images = torch.randint(1, 255, (64, 3, 6, 7), generator=seeded(), dtype=torch.uint8)
    padded = torch.nn.functional.pad(images, [2] * 4).repeat(30, 1, 1, 1)
    shifts = set()
    for image, result in zip(padded, augmented(images, seeds=30, random_crop=2), strict=True):
        found = [
            (top, left)
            for top, left in itertools.product(range(5), range(5))
            if torch.equal(image[:, top : top + 6, left : left + 7], result)
        ]
        assert found
        shifts.update(found)
    assert len(shifts) == 25


def test_erased_rectangles_have_the_published_sizes():
    erased = augmented(torch.full((64, 1, 32, 32), 9, dtype=torch.uint8), seeds=30, random_erasing=0.8) == 0
    counts = erased.flatten(1).sum(1)
    touched = counts > 0
    assert touched.double().mean() == pytest.approx(0.8, abs=0.04)
    heights, widths = (erased[:, 0].any(axis).sum(1)[touched] for axis in (2, 1))
    assert torch.equal(heights * widths, counts[touched])  # one full rectangle
    shares = counts[touched] / 1024
    assert shares.min() >= 0.01
    assert shares.max() <= 0.36
    assert shares.double().mean() == pytest.approx((0.02 + 0.33) / 2, abs=0.02)
    assert erased[:, 0].any(0).all()  # everywhere


@pytest.mark.parametrize("options", [*SINGLE[:6], {"random_crop": 4, "random_flip": 0.5, "random_erasing": 0.5}])
def test_every_image_of_a_batch_of_64_is_augmented_by_draws_of_its_own(options):
    options = {"random_crop": 4} if options == {"random_crop": 2} else options
    noise = torch.rand(1, 3, 4, 4, generator=seeded())
    image = torch.nn.functional.interpolate(noise, (16, 16), mode="bilinear").mul(200).add(20).to(torch.uint8)
    outcomes = {result.numpy().tobytes() for result in augmented(image.repeat(64, 1, 1, 1), **options)}
    assert len(outcomes) == 2 if options == {"random_flip": 0.5} else len(outcomes) > 16


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("auto_augment", ["cifar10", "randaugment", "augmix"])
def test_auto_augmented_images_stay_bytes_and_the_given_ones_as_they_are(auto_augment, channels):
    images = torch.randint(0, 256, (40, channels, 28, 28), generator=seeded(), dtype=torch.uint8)
    before = images.clone()
    changed = augmented(images, auto_augment=auto_augment)
    assert changed.shape == images.shape
    assert torch.equal(images, before)
    assert (changed != images).flatten(1).any(1).double().mean() > 0.5


def test_strength_decides_how_far_augmented_images_differ():
    noise = torch.rand(64, 3, 4, 4, generator=seeded())
    images = torch.nn.functional.interpolate(noise, (32, 32), mode="bilinear").mul(200).add(20).to(torch.uint8)

    def distance(**options):
        return float((augmented(images, **options).float() - images).abs().mean())

    weak, strong = ({"auto_augment": "randaugment", "randaugment_magnitude": level} for level in (2, 28))
    assert distance(**weak) < 0.8 * distance(**strong)
    weak, strong = ({"auto_augment": "augmix", "augmix_severity": level} for level in (1, 10))
    assert distance(**weak) < 0.8 * distance(**strong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_flip": 1.5}, r"random_flip=1.5: must be a probability in \[0, 1\]"),
        ({"random_erasing": -0.1}, r"random_erasing=-0.1: must be a probability"),
        ({"random_erasing": math.nan}, r"random_erasing=nan: must be a probability"),
        ({"mixup_alpha": -1.0}, r"mixup_alpha=-1.0: must be 0 \(off\) or a positive number"),
        ({"cutmix_alpha": math.inf}, r"cutmix_alpha=inf: must be 0"),
        (
            {"auto_augment": "autoaugment"},
            r"auto_augment='autoaugment' is unknown.* choose one of cifar10, randaugm",
        ),
        ({"random_crop": -1}, r"random_crop=-1 must be a whole number in \[0, 1024\]"),
        ({"random_crop": 2.5}, r"random_crop=2.5 must be a whole number"),
        ({"randaugment_magnitude": 31}, r"randaugment_magnitude=31 must be a whole number in \[0, 30\]"),
        ({"augmix_severity": 0}, r"augmix_severity=0 must be a whole number in \[1, 10\]"),
        ({"repeated_augmentation": 0}, r"repeated_augmentation=0 must be a whole number of at least 1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DigitsDataModule(**options)


def test_nothing_is_done_unless_asked_for():
    images, labels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), torch.arange(4)
    pixels, same_labels = DigitsDataModule().augment(images, labels, 0)
    assert torch.equal(pixels, images / 255)
    assert same_labels is labels


def test_options_come_from_yaml_and_are_logged():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DigitsDataModule, "data")
    parsed = parser.parse_object(
        {
            "data": {
                "class_path": "mlprank.datamodules.DigitsDataModule",
                "init_args": {
                    **EVERYTHING,
                    "train_transforms": {
                        "class_path": "torchvision.transforms.v2.RandomVerticalFlip",
                        "init_args": {"p": 1.0},
                    },
                },
            }
        }
    )
    datamodule = parser.instantiate(parsed).data
    assert datamodule.hparams.auto_augment == "cifar10"
    assert {name: datamodule.hparams[name] for name in EVERYTHING} == EVERYTHING
    assert isinstance(datamodule.train_transforms, v2.RandomVerticalFlip)
