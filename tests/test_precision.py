"""16-bit precision for real, on the CPU: float16 autocast and a gradient scaler that grows and backs off."""

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.plugins.precision import MixedPrecision
from toy import CLASSES, ToyData, anchored, backbone, classifier, trainer

from noisylightning import ForwardCorrection, NoisyLabelClassifier
from noisylightning.estimators.standalone import estimate_with_trainer


def sixteen() -> MixedPrecision:
    """Lightning's 16-mixed, which ``precision="16-mixed"`` would turn into bfloat16 on a CPU.

    The first scale overflows float16 and is halved some times; then it doubles at every fifth step.
    """
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=5))


class Record(Callback):
    """Writes the scaler's state and the weights down after each step."""

    def __init__(self) -> None:
        self.scales: list[tuple[float, int]] = []
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        state = trainer.precision_plugin.state_dict()
        self.scales.append((state["scale"], state["_growth_tracker"]))
        self.weights.append(torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()]))


def fit(folder, *callbacks, model=None, max_epochs=5, **options):
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    run = trainer(folder, callbacks, max_epochs, plugins=[sixteen()], enable_checkpointing=saves)
    run.fit(model or classifier(), ToyData(), weights_only=True, **options)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sixteen")
    seen: list[torch.dtype] = []

    def predict(module, batch):
        logits = module(batch[0])
        seen.append(logits.dtype)
        return logits, batch[1]

    callback, record = anchored(2, estimate_from="last", predict=predict), Record()
    run = fit(folder, callback, record, ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1))
    return folder, callback, record, run.precision_plugin.state_dict(), seen


def test_the_estimate_is_made_in_half_precision_and_kept_in_single(whole):
    _, callback, _, _, seen = whole
    assert set(seen) == {torch.float16}
    assert callback.transition.dtype == torch.float32
    torch.testing.assert_close(callback.transition.sum(dim=1), torch.ones(CLASSES), atol=1e-6, rtol=0)
    assert (callback.transition - torch.eye(CLASSES)).abs().max() > 0.05


def test_stage_two_is_a_fit_of_its_own(whole, tmp_path):
    _, callback, both, _, _ = whole
    two = Record()
    fit(tmp_path, two, model=classifier(correction=ForwardCorrection(callback.transition)), max_epochs=3)
    scales = [scale for scale, _ in two.scales]
    assert scales[0] < 2.0**24  # an overflow
    assert scales[-1] > min(scales)  # and growth after it
    assert both.scales[12:] == two.scales
    assert both.scales[11] != both.scales[12]
    assert torch.equal(torch.stack(both.weights[12:]), torch.stack(two.weights))


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize("epoch", range(4))
def test_every_epoch_end_resumes_bit_for_bit(whole, tmp_path, epoch):
    folder, callback, record, state, _ = whole
    again, resumed = anchored(2, estimate_from="last", predict=callback.predict), Record()
    run = fit(tmp_path, again, resumed, ckpt_path=folder / f"epoch={epoch}.ckpt")
    done = 6 * (epoch + 1)
    assert run.precision_plugin.state_dict() == state
    assert resumed.scales == record.scales[done:]
    assert torch.equal(torch.stack(resumed.weights), torch.stack(record.weights[done:]))
    assert torch.equal(again.transition, callback.transition)


def test_manual_optimization_restarts_the_scaler_too(tmp_path):
    class Manual(NoisyLabelClassifier):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    callback, both, two = anchored(2, estimate_from="last"), Record(), Record()
    fit(tmp_path, callback, both, model=Manual(backbone(), ForwardCorrection(num_classes=CLASSES)), max_epochs=4)
    fit(tmp_path, two, model=Manual(backbone(), ForwardCorrection(callback.transition)), max_epochs=2)
    assert both.scales[12:] == two.scales


def test_a_pass_of_its_own_estimates_the_same(whole, tmp_path):
    callback = whole[1]
    run = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, plugins=[sixteen()])
    found = estimate_with_trainer(run, classifier(), ToyData(), callback.stage_one_checkpoint, tmp_path / "T.npy")
    torch.testing.assert_close(found, callback.transition, atol=1e-6, rtol=0)
