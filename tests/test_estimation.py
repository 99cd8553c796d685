"""T-hat without a fit: from a checkpoint, and from a table of predictions."""

import numpy as np
import pytest
import torch
from toy import CLASSES, ToyData, classifier, trainer

from noisylightning import AnchorEstimator, EstimateTransitionCallback, ForwardCorrection
from noisylightning.cli import main
from noisylightning.estimation import EstimatingTrainer


@pytest.fixture
def table(tmp_path):
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(200, 4, generator=generator).mul(3).softmax(dim=1)
    labels = torch.multinomial(probs, 1, generator=generator).flatten()
    np.save(tmp_path / "probs.npy", probs.numpy())
    np.save(tmp_path / "labels.npy", labels.numpy())
    return tmp_path, probs, labels


def test_a_table_gives_what_the_estimator_gives_and_feeds_a_correction(table):
    folder, probs, labels = table
    files = [f"--probs={folder}/probs.npy", f"--labels={folder}/labels.npy", f"--output={folder}/T.npy"]
    main(["estimate", *files])
    estimator = AnchorEstimator(4)
    estimator.update(probs, labels)
    assert torch.equal(torch.from_numpy(np.load(folder / "T.npy")), estimator.compute())
    assert (folder / "T.png").exists()
    assert torch.equal(ForwardCorrection(str(folder / "T.npy")).transition, estimator.compute())


def test_the_estimator_is_chosen_by_name(table):
    folder, probs, labels = table
    files = [f"--probs={folder}/probs.npy", f"--labels={folder}/labels.npy", f"--output={folder}/T.npy"]
    main(["estimate", *files, "--estimator=AnchorEstimator", "--estimator.quantile=0.9"])
    estimator = AnchorEstimator(4, 0.9)
    estimator.update(probs, labels)
    assert torch.equal(torch.from_numpy(np.load(folder / "T.npy")), estimator.compute())


def test_a_checkpoint_of_stage_one_gives_the_estimate_of_the_fit(tmp_path):
    callback = EstimateTransitionCallback(2)
    trainer(tmp_path, [callback], max_epochs=3).fit(classifier(), ToyData())
    run = EstimatingTrainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    found = run.estimate(classifier(), ToyData(), callback.stage_one_checkpoint, tmp_path / "T.npy")
    torch.testing.assert_close(found, callback.transition, atol=1e-6, rtol=0)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "T.npy")), found)


def test_a_corrected_network_speaks_about_noisy_labels(tmp_path):
    """Where T is in the model already, it is p T that the noisy labels follow."""
    model = classifier(correction=ForwardCorrection(ToyData.transition))
    run = EstimatingTrainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    found = run.estimate(model, ToyData(), output=tmp_path / "T.npy")
    inputs, labels = ToyData().train.tensors
    estimator = AnchorEstimator(CLASSES)
    with torch.no_grad():
        estimator.update(model.eval()(inputs).softmax(dim=1) @ ToyData.transition, labels)
    torch.testing.assert_close(found, estimator.compute(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "missing.npy"}, "There is no file"),
        ({"output": "T.txt"}, "output must end in .npy"),
        ({"probs": "flat.npy"}, "must hold a table"),
        ({"labels": "short.npy"}, "one label a prediction"),
    ],
)
def test_wrong_tables_are_answered_in_one_sentence(table, change, message):
    folder, probs, labels = table
    np.save(folder / "flat.npy", probs.flatten().numpy())
    np.save(folder / "short.npy", labels[:5].numpy())
    files = {"probs": "probs.npy", "labels": "labels.npy", "output": "T.npy", **change}
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", *(f"--{name}={folder}/{file}" for name, file in files.items())])
    assert message in str(stopped.value)


def test_data_without_an_estimation_loader_is_refused():
    class Bare(ToyData):
        estimation_dataloader = property()

    with pytest.raises(ValueError, match=r"has no estimation_dataloader\(\)"):
        EstimatingTrainer(accelerator="cpu", logger=False).estimate(classifier(), Bare())
