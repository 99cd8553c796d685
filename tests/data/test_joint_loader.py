"""The loader of noisy and trusted samples: of every kind of data, in every process's share."""

import pytest
import torch
from joint_data import TrustedApart, TrustedBlobs, blobs
from torch.utils.data import TensorDataset

from noisylightning.data import ArrayDataModule, DatasetDataModule, SymmetricNoise
from noisylightning.data.view import EpochSampler, JointView, LabelledView


def whole(data):
    data.setup("fit")
    return tuple(torch.cat(column) for column in zip(*data.joint_dataloader(), strict=True))


@pytest.mark.parametrize("make", [TrustedBlobs, TrustedApart])
def test_each_sample_is_there_once_with_its_input_and_place(make):
    data = make()
    inputs, _, index, trusted = whole(data)
    stored = torch.cat([blobs(150)[0], blobs(6, seed=1)[0]])
    assert torch.equal(inputs, stored[index])
    assert len(index.unique()) == len(index) == len(data.train_index) + int(trusted.sum())
    assert not torch.isin(index, data.val_index).any()
    assert (index[trusted] >= 150).all() == (make is TrustedApart)


def test_the_order_depends_on_seed_and_epoch():
    data = TrustedBlobs()
    data.setup("fit")
    loader = data.joint_dataloader()
    first, again = ([batch[2].tolist() for batch in loader] for _ in range(2))
    loader.sampler.set_epoch(1)
    assert first == again != [batch[2].tolist() for batch in loader]


def test_shares_of_processes_are_of_one_length_and_hold_each_sample_once():
    data = TrustedBlobs()
    data.setup("fit")
    view = data.joint_dataloader().dataset
    shares = [list(EpochSampler(view, 0, num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert len(view) == 137
    assert [len(share) for share in shares] == [69, 69]
    assert sorted({*shares[0], *shares[1]}) == list(range(137))


def test_both_kinds_are_augmented_by_the_epoch():
    class Shift:
        num_draws = 1

        def __call__(self, inputs, draws):
            return inputs + 100 * draws

    data = ArrayDataModule(*blobs(150), trusted=4, batch_size=20, augmentation=Shift())
    data.setup("fit")
    loader = data.joint_dataloader()
    shifts = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        inputs, _, index, trusted = (torch.cat(column) for column in zip(*loader, strict=True))
        shift = torch.zeros(150)
        shift[index] = (inputs - blobs(150)[0][index])[:, 0]
        assert shift[index[trusted]].min() > 0
        shifts.append(shift)
    assert not torch.equal(*shifts)


def test_soft_labels_of_one_kind_make_those_of_the_other_soft():
    inputs, labels = torch.arange(4.0), torch.tensor([0, 1, 0, 1])
    soft = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0], [0.0, 1.0]])
    view = JointView(LabelledView(inputs, soft, torch.tensor([0, 1])), LabelledView(inputs, labels, torch.tensor([3])))
    assert torch.equal(view.__getitems__([2, 1])[1], torch.tensor([[0.0, 1.0], [0.25, 0.75]]))
    assert torch.equal(view.__getitems__([1])[1], soft[[1]])


def test_one_sample_at_a_time():
    inputs, labels = torch.arange(4.0), torch.tensor([0, 1, 0, 1])
    view = JointView(
        LabelledView(inputs, labels, torch.tensor([0, 1])), LabelledView(inputs, labels, torch.tensor([3]))
    )
    assert [tuple(part.item() for part in view[place]) for place in (0, -1)] == [(0.0, 0, 0, False), (3.0, 1, 3, True)]


def test_a_data_set_of_the_user_gives_training_samples_their_variation():
    """``train`` varies its samples, ``plain`` does not; trusted ones come from the latter, as in fine-tuning."""
    inputs, labels = blobs(60)
    data = DatasetDataModule(
        TensorDataset(inputs + 1000, labels),
        3,
        plain=TensorDataset(inputs, labels),
        noise=SymmetricNoise(0.2),
        trusted=2,
    )
    found, _, _, trusted = whole(data)
    assert torch.equal(found.mean(dim=1) > 500, ~trusted)
