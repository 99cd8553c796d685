"""What stage two begins from."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from toy import CLASSES, ForeignClassifier, ToyData, backbone, trainer, weights

from noisylightning import (
    EstimateTransitionCallback,
    ForwardCorrection,
)


@pytest.mark.parametrize("reinit", ["initial", "keep", "fresh"])
def test_stage_two_begins_where_it_was_told_to(tmp_path, reinit):
    class Fresh(ForeignClassifier):
        def reset_weights(self):
            self.net.load_state_dict(backbone(seed=7).state_dict())

    seen = {}

    class Spy(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen["end"] = weights(pl_module)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 2 and batch_idx == 0:
                seen["start"] = weights(pl_module)
                seen["stage one's end"] = seen["end"]

    callback = EstimateTransitionCallback(
        stage_one_epochs=2,
        estimate_from="last",
        reinit=reinit,
        correction=ForwardCorrection(num_classes=CLASSES),
        loss_attribute="criterion",
    )
    model = Fresh()
    first = weights(model)
    trainer(tmp_path, [callback, Spy()], max_epochs=3).fit(model, ToyData())
    fresh = weights(backbone(seed=7))
    assert torch.equal(seen["start"], {"initial": first, "keep": seen["stage one's end"], "fresh": fresh}[reinit])
