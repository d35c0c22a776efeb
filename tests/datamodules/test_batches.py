import itertools

import pytest
import torch

from mlprank.datamodules.images import TensorBatches, derive_seed, global_seed


def loader(count=23, *, batch_size=4, drop_last=False, **sampling) -> TensorBatches:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    labels, rows = torch.arange(count), torch.arange(count)
    return TensorBatches(images, labels, rows, batch_size=batch_size, drop_last=drop_last, **sampling)


def seen(batches) -> list[int]:
    return [int(label) for _, labels in batches for label in labels]


def test_batches_hold_the_images_of_their_labels():
    for images, labels in loader(shuffle=True):
        assert images.dtype == torch.uint8
        assert torch.equal(images.flatten(), labels.to(torch.uint8))


def test_an_epoch_shows_every_image_once_and_every_epoch_in_another_order():
    batches = loader(shuffle=True)
    orders = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        orders.append(seen(batches))
        assert sorted(orders[-1]) == list(range(23))
    assert len(set(map(tuple, orders))) == 3


def test_the_order_depends_on_seed_and_epoch_alone():
    late = loader(shuffle=True, seed=3)
    late.set_epoch(5)
    torch.manual_seed(0)
    other = loader(shuffle=True, seed=3)
    for epoch in range(6):
        other.set_epoch(epoch)
        order = seen(other)
    assert seen(late) == order
    assert seen(loader(shuffle=True, seed=4)) != seen(loader(shuffle=True, seed=3))


def test_shuffling_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    seen(loader(shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_drop_last_leaves_out_the_short_batch():
    assert [len(labels) for _, labels in loader()] == [4, 4, 4, 4, 4, 3]
    assert [len(labels) for _, labels in loader(drop_last=True)] == [4] * 5
    assert len(loader()) == 6
    assert len(loader(drop_last=True)) == 5


@pytest.mark.parametrize("count", [1, 2, 5, 23, 24])
@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("pad", [True, False])
def test_every_rank_gets_the_same_number_of_batches_and_every_image_is_seen(count, world_size, batch_size, pad):
    ranks = [
        loader(count, batch_size=batch_size, shuffle=pad, rank=rank, world_size=world_size, pad=pad)
        for rank in range(world_size)
    ]
    sizes = [[len(labels) for _, labels in batches] for batches in ranks]
    assert {len(batches) for batches in sizes} == {len(ranks[0])}
    assert all(1 <= size <= batch_size for batches in sizes for size in batches)
    assert set().union(*(seen(batches) for batches in ranks)) == set(range(count))


def test_training_ranks_see_equally_many_and_evaluation_ranks_no_image_twice():
    for pad, expected in ((True, [8, 8, 8]), (False, [8, 8, 7])):
        shares = [seen(loader(rank=rank, world_size=3, pad=pad)) for rank in range(3)]
        assert [len(share) for share in shares] == expected
    assert sorted(itertools.chain(*shares)) == list(range(23))


def test_the_ranks_batches_together_are_one_larger_batch():
    together = [set(labels.tolist()) for _, labels in loader(24, batch_size=4, shuffle=True)]
    ranks = [loader(24, batch_size=2, shuffle=True, rank=rank, world_size=2) for rank in range(2)]
    joined = [set(torch.cat([one, two]).tolist()) for (_, one), (_, two) in zip(*ranks, strict=True)]
    assert joined == together


def test_repeats_show_every_image_that_often_in_a_row():
    order = seen(loader(24, batch_size=6, shuffle=True, repeats=3))
    assert len(order) == 24
    assert order == [image for image in order[::3] for _ in range(3)]
    assert len(set(order)) == 8


@pytest.mark.parametrize("stopped_after", range(7))
def test_a_restored_loader_goes_on_with_the_next_batch(stopped_after):
    whole, stopped, resumed = (loader(shuffle=True) for _ in range(3))
    for batches in (whole, stopped, resumed):
        batches.set_epoch(2)
    iterator = iter(stopped)
    first = seen(itertools.islice(iterator, stopped_after))
    state = stopped.state_dict()
    assert all(isinstance(value, int) for value in state.values())
    resumed.load_state_dict(state)
    assert first + seen(resumed) == seen(whole)
    assert seen(resumed) == seen(whole)  # once: the epoch after is whole again


def test_the_place_in_one_epoch_does_not_shorten_another():
    stopped, resumed = loader(shuffle=True), loader(shuffle=True)
    list(itertools.islice(stopped, 3))
    resumed.load_state_dict(stopped.state_dict())
    resumed.set_epoch(1)
    assert len(seen(resumed)) == 23


def test_the_epoch_may_be_set_after_iter_is_called():
    early, late = loader(shuffle=True), loader(shuffle=True)
    early.set_epoch(4)
    iterator = iter(late)
    late.set_epoch(4)
    assert seen(iterator) == seen(early)


def test_a_place_within_an_epoch_of_other_batches_is_refused():
    stopped = loader(shuffle=True)
    iterator = iter(stopped)
    next(iterator)
    message = r"within epoch 0 after batch 1 of 6, .*num_batches was 6, is 3, batch_size was 4, is 8.*end of an epoch"
    with pytest.raises(ValueError, match=message):
        loader(shuffle=True, batch_size=8).load_state_dict(stopped.state_dict())
    list(iterator)
    larger = loader(shuffle=True, batch_size=8)
    larger.load_state_dict(stopped.state_dict())
    assert seen(larger) == []  # that epoch was over


def test_what_is_fetched_together_has_a_seed_of_its_own():
    seeds = []

    def transform(images, labels, seed):
        seeds.append(seed)
        return images, labels

    for rank, epoch in itertools.product(range(2), range(2)):
        batches = loader(shuffle=True, rank=rank, world_size=2)
        batches.set_epoch(epoch)
        batches.transform, batches.at_once = transform, 2
        assert len(list(batches)) == 3
    assert len(set(seeds)) == len(seeds) == 2 * 2 * 2


def test_derived_seeds_are_the_same_in_every_process():
    assert derive_seed(0, "order", 1) == derive_seed(0, "order", 1) != derive_seed(0, "order", 2)
    assert derive_seed(7) == 843011692241435484
    assert 0 <= derive_seed(-1, "x") < 2**63


def test_global_seed_seeds_inside_and_restores_outside():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with global_seed(9, device=torch.device("cpu")):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_prepared_together_are_those_prepared_one_by_one_and_so_is_the_place_in_the_epoch():
    images, labels = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1), torch.arange(50)

    def batches(at_once):
        halved = lambda x, y, seed: (x.float() / 2, y)  # noqa: E731
        options = {"seed": 3, "shuffle": True, "transform": halved, "at_once": at_once}
        return TensorBatches(images, labels, torch.arange(50), batch_size=4, **options)

    one, several = batches(1), batches(5)
    for (x, y), (together_x, together_y) in zip(one, several, strict=True):
        assert torch.equal(x, together_x)
        assert torch.equal(y, together_y)
        assert one.state_dict() == several.state_dict()
    resumed = batches(5)
    resumed.load_state_dict({**one.state_dict(), "batches": 7})
    assert torch.equal(next(iter(resumed))[1], list(one)[7][1])
