"""Stage two on noisy and trusted samples together, on two processes over gloo."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from joint_data import TrustedBlobs

SCRIPT = Path(__file__).parent / "joint_fit.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_each_sample_comes_once_an_epoch_on_one_of_the_processes(ranks):
    data = TrustedBlobs(num=60, batch_size=2, trusted=8)
    data.setup("fit")
    both = sorted([*data.trusted_index.tolist(), *data.train_index.tolist()])
    assert len(both) % 2 == 0  # so that none is there twice to make shares of one length
    seen = [rank["whole"]["seen"] for rank in ranks]
    for epoch in (2, 3):
        shares = [[batch for batch in share if batch[0] == epoch] for share in seen]
        assert sorted(place for share in shares for _, index, _ in share for place in index) == both
        for share in shares:
            for _, index, flags in share:
                assert flags == torch.isin(torch.tensor(index), data.trusted_index).tolist()
    alone = [all(flags) for share in seen for _, _, flags in share if flags]
    assert any(alone)  # a T that learns had no gradient of its own there, and nobody waited for it
    assert all(flags is None for share in seen for epoch, _, flags in share if epoch < 2)


def test_the_processes_agree_and_resume_bit_for_bit(ranks):
    zero, one = (rank["whole"] for rank in ranks)
    assert torch.equal(zero["weights"], one["weights"])
    assert torch.equal(zero["accuracy"], one["accuracy"])
    for rank in ranks:
        assert torch.equal(rank["resumed"]["weights"], rank["whole"]["weights"])
        assert rank["resumed"]["seen"] == [batch for batch in rank["whole"]["seen"] if batch[0] > 2]
