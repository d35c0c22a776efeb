import warnings

import pytest
import torch
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from torchvision.transforms import v2

from mlprank.datamodules import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    FashionMNISTDataModule,
    MNISTDataModule,
)
from tests.datamodules.networks import Recorder, quiet_trainer
from tests.datamodules.writers import write_cifar10, write_cifar100, write_mnist


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder / "MNIST" / "raw")
    write_mnist(folder / "FashionMNIST" / "raw", num_train=50)
    write_cifar10(folder / "cifar-10-batches-py")
    write_cifar100(folder / "cifar-100-python")
    return str(folder)


ALL = [DigitsDataModule, MNISTDataModule, FashionMNISTDataModule, CIFAR10DataModule, CIFAR100DataModule]
SIZES = {
    DigitsDataModule: (1150, 288, 359),
    MNISTDataModule: (80, 20, 20),
    FashionMNISTDataModule: (40, 10, 20),
    CIFAR10DataModule: (88, 22, 25),
    CIFAR100DataModule: (160, 40, 100),
}


def gather(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("kind", ALL)
def test_every_set_gives_images_and_labels_as_a_model_expects_them(kind, data_dir):
    datamodule = kind(batch_size=16, data_dir=data_dir)
    loaders = datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()
    for loader, size in zip(loaders, SIZES[kind], strict=True):
        images, labels = gather(loader)
        assert images.shape == (size, *datamodule.in_shape)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert 0 <= labels.min() <= labels.max() < datamodule.num_classes
        assert len(loader) == -(-size // 16)
    assert torch.equal(torch.cat(list(datamodule.predict_dataloader())), images)


@pytest.mark.parametrize("kind", ALL)
def test_pixels_lie_in_0_to_1_and_cifar_is_normalised(kind, data_dir):
    datamodule = kind(data_dir=data_dir, batch_size=16)
    images = datamodule.read("train")[0]
    prepared, _ = datamodule.prepare(images, torch.zeros(0))
    pixels = images.double() / 255
    if kind in (CIFAR10DataModule, CIFAR100DataModule):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (datamodule.mean, datamodule.std))
        pixels = (pixels - mean) / std
    else:
        assert prepared.min() == 0
        assert prepared.max() == 1
    assert torch.allclose(prepared.double(), pixels, atol=1e-6)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    expected = {(image.tobytes(), int(label)) for image, label in zip(bunch.images, bunch.target, strict=True)}
    found = set()
    for part in ("train", "test"):
        images, labels, _ = DigitsDataModule().read(part)
        grey = (images[:, 0].double() * 16 / 255).round()
        found |= {(image.numpy().tobytes(), int(label)) for image, label in zip(grey, labels, strict=True)}
    assert found == expected


def test_digits_test_images_are_the_same_for_every_seed():
    assert torch.equal(DigitsDataModule(seed=1).read("test")[0], DigitsDataModule(seed=2).read("test")[0])


def test_the_split_is_disjoint_complete_and_follows_the_seed(data_dir):
    def split(seed):
        return DigitsDataModule(seed=seed)._split()

    train, validation = split(0)
    assert len(validation) == round(0.2 * 1438)
    assert sorted(torch.cat([train, validation]).tolist()) == list(range(1438))
    assert torch.equal(split(0)[0], train)
    assert not torch.equal(split(1)[0], train)
    assert len(DigitsDataModule(validation_fraction=0.5)._split()[1]) == 719


def test_calibration_images_are_plain_training_images(data_dir):
    flip = v2.RandomVerticalFlip(1.0)
    datamodule = MNISTDataModule(data_dir=data_dir, batch_size=16, train_transforms=flip)
    images, labels = gather(datamodule.calibration_dataloader(num_samples=30))
    rows = datamodule._split()[0]
    everything, classes, _ = datamodule.read("train")
    train = {
        (image.numpy().tobytes(), int(label)) for image, label in zip(everything[rows], classes[rows], strict=True)
    }
    drawn = {
        ((image * 255).round().to(torch.uint8).numpy().tobytes(), int(label))
        for image, label in zip(images, labels, strict=True)
    }
    assert len(drawn) == 30
    assert drawn <= train


def test_calibration_follows_its_own_seed_and_is_limited_by_the_split():
    datamodule = DigitsDataModule()
    first = gather(datamodule.calibration_dataloader(num_samples=100, seed=0))[0]
    assert torch.equal(gather(datamodule.calibration_dataloader(num_samples=100, seed=0))[0], first)
    assert not torch.equal(gather(datamodule.calibration_dataloader(num_samples=100, seed=1))[0], first)
    assert len(gather(datamodule.calibration_dataloader(num_samples=5000))[0]) == 1150
    with pytest.raises(ValueError, match="num_samples=0 must be a whole number of at least 1"):
        datamodule.calibration_dataloader(num_samples=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0 must be a whole number of at least 1"),
        ({"batch_size": -3}, ValueError, "batch_size=-3 must be a whole number of at least 1"),
        ({"batch_size": 6.4}, ValueError, "batch_size=6.4 must be a whole number"),
        ({"batch_size": True}, ValueError, "batch_size=True must be a whole number"),
        ({"validation_fraction": 0.0}, ValueError, r"validation_fraction=0.0: must lie in \(0, 1\)"),
        ({"validation_fraction": 1.0}, ValueError, r"validation_fraction=1.0: must lie in \(0, 1\)"),
        ({"validation_fraction": float("nan")}, ValueError, "validation_fraction=nan"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        DigitsDataModule(**arguments)


def test_a_batch_larger_than_the_data_is_refused_with_the_largest_possible():
    DigitsDataModule(batch_size=1150).train_dataloader()
    with pytest.raises(
        ValueError, match=r"batch_size=1151 exceeds the 1150 training images of Digits; lower it to at most"
    ):
        DigitsDataModule(batch_size=1151).train_dataloader()


def test_a_fraction_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"validation_fraction=0.0001 of 1438 images of Digits leaves nothing"):
        DigitsDataModule(validation_fraction=0.0001).val_dataloader()


def test_a_set_with_one_class_is_refused(tmp_path):
    write_mnist(tmp_path, num_train=1)
    with pytest.raises(
        ValueError, match=r"train-labels-idx1-ubyte: all 1 images have label 0; .* at least two classes"
    ):
        MNISTDataModule(data_dir=str(tmp_path)).setup("fit")


def test_a_missing_cifar_file_is_never_half_a_set(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(FileNotFoundError, match=r"CIFAR10 is not in .*data_batch_4"):
        CIFAR10DataModule(data_dir=str(tmp_path), download=False).setup("fit")


def test_cifar100_uses_the_fine_classes(data_dir):
    assert set(CIFAR100DataModule(data_dir=data_dir).read("test")[1].tolist()) == set(range(100))


def test_a_stage_reads_only_what_it_needs(data_dir):
    datamodule = MNISTDataModule(data_dir=data_dir)
    datamodule.setup("test")
    assert set(datamodule._loaded) == {"test"}
    datamodule.setup("fit")
    assert set(datamodule._loaded) == {"train", "test"}


def test_hyperparameters_are_plain_and_complete(tmp_path):
    datamodule = MNISTDataModule(batch_size=8, data_dir=tmp_path, seed=3, train_transforms=v2.Identity())
    assert datamodule.hparams["batch_size"] == 8
    assert datamodule.hparams["seed"] == 3
    assert datamodule.hparams["data_dir"] == str(tmp_path)
    assert all(isinstance(value, str | int | float | bool | None) for value in datamodule.hparams.values())


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("64-true", torch.float64),
        ("bf16-true", torch.bfloat16),
        ("bf16-mixed", torch.float32),
    ],
)
def test_lightning_gets_batches_in_its_precision_without_a_warning(precision, dtype):
    datamodule, network = DigitsDataModule(batch_size=128), Recorder()
    trainer = quiet_trainer(max_epochs=1, precision=precision)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PossibleUserWarning)
        trainer.fit(network, datamodule=datamodule)
        trainer.test(network, datamodule=datamodule, verbose=False)
        predictions = torch.cat(trainer.predict(network, datamodule=datamodule))
    assert network.kinds == {("train", dtype), ("validate", dtype), ("test", dtype)}
    assert len(predictions) == 359
    assert len(network.seen) == 9


def test_a_train_transform_sees_bytes_in_training_and_nothing_else():
    shapes = []

    def invert(images):
        shapes.append((images.shape, images.dtype))
        return 255 - images

    plain, inverted = (DigitsDataModule(train_transforms=transform) for transform in (None, invert))
    for (images, _), (others, _) in zip(plain.train_dataloader(), inverted.train_dataloader(), strict=True):
        assert torch.allclose(images, 1 - others)
    assert shapes[0] == ((64, 1, 8, 8), torch.uint8)
    calls = len(shapes)
    for name in ("val", "test", "predict", "calibration"):
        loaders = (getattr(datamodule, f"{name}_dataloader")() for datamodule in (plain, inverted))
        for one, other in zip(*loaders, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert len(shapes) == calls


def test_a_trainer_gives_the_same_batches_as_the_loader_alone():
    def transform(images):
        return images + torch.randint(0, 2, images.shape, dtype=torch.uint8)

    network = Recorder()
    quiet_trainer(max_epochs=2).fit(network, datamodule=DigitsDataModule(train_transforms=transform))
    alone = Recorder()
    loader = DigitsDataModule(train_transforms=transform).train_dataloader()
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            alone.training_step(batch, 0)
    assert [total for _, total in network.seen] == [total for _, total in alone.seen]


def test_overfitting_on_some_batches_repeats_them():
    network = Recorder()
    quiet_trainer(max_epochs=3, overfit_batches=2).fit(network, datamodule=DigitsDataModule())
    totals = [total for _, total in network.seen]
    assert totals == totals[:2] * 3


def test_the_real_fashion_mnist_is_found_and_whole():
    found = FashionMNISTDataModule.file_set.find(FashionMNISTDataModule().data_dir)
    if found is None:
        pytest.skip("FashionMNIST is not on this machine")
    datamodule = FashionMNISTDataModule(download=False)
    images, labels = gather(datamodule.test_dataloader())
    assert images.shape == (10_000, 1, 28, 28)
    assert labels.bincount().tolist() == [1000] * 10
    assert images.mean() == pytest.approx(0.2868, abs=1e-4)
    assert [len(part) for part in datamodule._split()] == [48_000, 12_000]
