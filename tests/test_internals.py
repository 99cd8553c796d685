"""One canary for each thing inside Lightning that ``internals.py`` relies on.

Where one of these fails with a new release, Lightning has changed and ``internals.py`` has to follow; the other tests
would only say that training went wrong.
"""

import operator

import pytest
import torch
from pytorch_lightning.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    Timer,
    WeightAveraging,
)
from torch.utils.data import DataLoader
from toy import ForeignClassifier, ToyData, backbone, classifier, trainer, uncorrected

from noisylightning import internals


class Calls(Callback):
    """Runs what it is given at a hook."""

    def __init__(self, **hooks):
        for name, hook in hooks.items():
            setattr(self, name, hook)


def fit(folder, *callbacks, model=None, data=None, max_epochs=2, **options):
    run = trainer(folder, callbacks, max_epochs, **options)
    run.fit(model or uncorrected(), data or ToyData())
    return run


def test_setup_optimizers_builds_new_ones(tmp_path):
    seen = []

    def rebuild(trainer, module):
        before = trainer.strategy.optimizers[0]
        trainer.strategy.setup_optimizers(trainer)
        seen.append((before, trainer.strategy.optimizers[0], trainer.optimizers[0]))

    fit(tmp_path, Calls(on_train_epoch_start=rebuild))
    assert all(before is not after and after is now for before, after, now in seen)


def test_the_strategy_builds_optimizers_through_a_method_that_can_be_replaced(tmp_path):
    calls = []

    def replace(trainer, module, stage):
        build = trainer.strategy.setup_optimizers
        trainer.strategy.setup_optimizers = lambda trainer: (calls.append("built"), build(trainer))

    fit(tmp_path, Calls(setup=replace))
    assert calls == ["built"]


def test_limits_of_the_loop_are_what_schedules_see(tmp_path):
    seen = {}

    def look(trainer, module):
        loop = trainer.fit_loop
        loop.max_epochs, loop.epoch_loop.max_steps = 5, -1
        seen["epochs"] = trainer.max_epochs, trainer.estimated_stepping_batches
        loop.epoch_loop.max_steps = 7
        seen["steps"] = trainer.max_steps, trainer.estimated_stepping_batches
        loop.max_epochs, loop.epoch_loop.max_steps = 2, -1

    fit(tmp_path, Calls(on_train_start=look))
    assert seen == {"epochs": (5, 30), "steps": (7, 7)}


def test_order_of_hooks_when_a_fit_resumes(tmp_path):
    fit(tmp_path, ModelCheckpoint(tmp_path, filename="{epoch}"), max_epochs=1, enable_checkpointing=True)
    order = []

    class Model(ForeignClassifier):
        def __init__(self):
            super().__init__()
            self.net = backbone()

        def configure_optimizers(self):
            order.append("configure_optimizers")
            return super().configure_optimizers()

    names = ("setup", "on_load_checkpoint", "on_fit_start", "on_train_start", "on_train_epoch_start")
    record = Calls(**{name: lambda *args, name=name, **kwargs: order.append(name) for name in names})
    checkpoint = ModelCheckpoint(tmp_path / "foreign", filename="{epoch}", monitor=None)
    fit(tmp_path, checkpoint, model=Model(), max_epochs=1, enable_checkpointing=True)
    order.clear()
    run = trainer(tmp_path, [record], max_epochs=2)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        run.fit(Model(), ToyData(), ckpt_path=tmp_path / "foreign" / "epoch=0.ckpt", weights_only=True)
    assert order == [
        "setup",
        "on_load_checkpoint",
        "configure_optimizers",
        "on_fit_start",
        "on_train_start",
        "on_train_epoch_start",
    ]


def test_the_iterator_comes_after_the_epoch_starts_except_in_the_first_epoch_of_a_run(tmp_path):
    order = []

    class Loader(DataLoader):
        def __iter__(self):
            order.append("iterator")
            return super().__iter__()

    class Data(ToyData):
        def train_dataloader(self):
            return Loader(self.train, batch_size=16)

    start = Calls(on_train_epoch_start=lambda *args: order.append("epoch starts"))
    every = ModelCheckpoint(tmp_path, filename="{epoch}")
    fit(tmp_path, start, every, model=ForeignClassifier(), data=Data(), enable_checkpointing=True)
    assert order == ["iterator", "epoch starts", "epoch starts", "iterator"]
    order.clear()
    fetchers = []
    look = Calls(on_train_epoch_start=lambda trainer, module: fetchers.append(trainer.fit_loop._data_fetcher))
    run = trainer(tmp_path, [start, look], max_epochs=3)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        run.fit(ForeignClassifier(), Data(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert order == ["iterator", "epoch starts"]
    assert fetchers[0] is not None


def test_callbacks_that_monitor_run_last_in_their_order_and_checkpoints_after_all(tmp_path):
    order = []

    def record(kind, *arguments, **options):
        class Recorded(kind):
            def on_train_epoch_end(self, *args):
                order.append(kind.__name__)
                super().on_train_epoch_end(*args)

        return Recorded(*arguments, **options)

    class Model(ForeignClassifier):
        def on_train_epoch_end(self):
            order.append("module")

    stopper = record(EarlyStopping, "val_acc", mode="max")
    checkpoint = record(ModelCheckpoint, tmp_path)
    run = trainer(tmp_path, [checkpoint, stopper, record(Callback)], max_epochs=1, enable_checkpointing=True)
    run.fit(Model(), ToyData())
    assert order == ["Callback", "module", "EarlyStopping", "ModelCheckpoint"]


def test_a_request_to_stop_may_be_taken_back_before_the_loop_obeys(tmp_path):
    class TakeBack(EarlyStopping):
        def __init__(self):
            super().__init__("none")

        def setup(self, *args, **kwargs):
            pass

        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = False

        def on_validation_end(self, *args):
            pass

    stopper = EarlyStopping("val_accuracy", mode="max", patience=1, min_delta=9)
    run = fit(tmp_path, stopper, TakeBack(), max_epochs=5)
    assert run.current_epoch == 5
    assert stopper.wait_count >= stopper.patience
    assert stopper.stopped_epoch > 0


def test_early_stopping_says_in_which_epoch_it_asked_also_in_the_first(tmp_path):
    stopper = EarlyStopping("val_accuracy", mode="max", stopping_threshold=-1.0)
    assert stopper.stopping_reason_message is None
    assert fit(tmp_path, stopper).current_epoch == 1
    assert stopper.stopped_epoch == 0
    assert stopper.stopping_reason_message is not None
    assert "stopping_reason_message" in stopper.state_dict()


def test_a_timer_asks_to_stop_without_early_stopping(tmp_path):
    run = fit(tmp_path, Timer("00:00:00:00"), max_epochs=5)
    assert run.current_epoch < 5


def test_first_states_restore_checkpoint_and_early_stopping(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_accuracy", mode="max", save_last=True)
    stopper = EarlyStopping("val_accuracy", mode="max", patience=9)
    fit(tmp_path, checkpoint, stopper, enable_checkpointing=True)
    state = checkpoint.state_dict()
    assert {"best_model_score", "best_k_models", "kth_best_model_path", "last_model_path", "dirpath"} <= state.keys()
    checkpoint.load_state_dict({**state, "best_model_score": None, "best_k_models": {}, "best_model_path": ""})
    assert checkpoint.best_model_score is None
    assert checkpoint.best_k_models == {}
    fresh = EarlyStopping("val_accuracy", mode="max", patience=9)
    stopper.load_state_dict(fresh.state_dict())
    assert stopper.best_score == fresh.best_score


def test_weight_averaging_counts_in_its_average_model(tmp_path):
    average = WeightAveraging()
    fit(tmp_path, average, max_epochs=1)
    assert int(average._average_model.n_averaged) == 6
    assert average._average_model.module.state_dict().keys() == classifier().state_dict().keys()


def test_training_data_can_be_changed_at_the_start_of_an_epoch(tmp_path):
    sizes = []

    def change(trainer, module):
        if trainer.current_epoch == 1:
            loop = trainer.fit_loop
            loop._data_source.instance = DataLoader(ToyData().val, batch_size=8)
            loop._combined_loader = None
            loop.setup_data()

    record = Calls(
        on_train_epoch_start=change,
        on_train_batch_end=lambda trainer, module, outputs, batch, index: sizes.append(len(batch[0])),
    )
    fit(tmp_path, record)
    assert sizes == [16] * 6 + [8] * 6


def test_the_training_source_is_what_the_fit_was_given(tmp_path):
    seen = []
    look = Calls(setup=lambda trainer, module, stage: seen.append(trainer.fit_loop._data_source.instance))
    data, loader, model = ToyData(), ToyData().train_dataloader(), uncorrected()
    fit(tmp_path, look, data=data, max_epochs=1)
    trainer(tmp_path, [look], 1).fit(model, loader)
    model.train_dataloader = data.train_dataloader
    trainer(tmp_path, [look], 1).fit(model)
    assert all(map(operator.is_, seen, (data, loader, model)))


def test_a_data_module_gives_every_loader_and_its_training_loader_may_be_replaced_at_setup(tmp_path):
    sources, sizes = [], []

    def replace(trainer, module, stage):
        loop = trainer.fit_loop
        sources.append(loop.epoch_loop.val_loop._data_source.instance)
        assert loop._combined_loader is None
        loop._data_source.instance = DataLoader(ToyData().val, batch_size=12)

    look = Calls(setup=replace, on_train_start=lambda trainer, _: sizes.append(trainer.num_training_batches))
    data = ToyData()
    fit(tmp_path, look, data=data, max_epochs=1)
    trainer(tmp_path, [look], 1).fit(uncorrected(), data.train_dataloader(), data.val_dataloader())
    assert sources[0] is data
    assert isinstance(sources[1], DataLoader)
    assert sizes == [4, 4]  # and not six


def test_the_data_may_become_what_the_fit_was_given_again(tmp_path):
    sizes = []

    def change(trainer, module):
        loop = trainer.fit_loop
        if trainer.current_epoch:
            other = DataLoader(ToyData().val, batch_size=8)
            loop._data_source.instance = other if trainer.current_epoch == 1 else trainer.datamodule
            loop._combined_loader = None
            loop.setup_data()
        sizes.append(trainer.num_training_batches)

    run = fit(tmp_path, Calls(on_train_epoch_start=change), data=ToyData(num_train=160), max_epochs=3)
    assert sizes == [10, 6, 10]
    assert run.global_step == 26


@pytest.mark.parametrize(("options", "steps"), [({"max_epochs": 2}, 24), ({"max_epochs": -1, "max_steps": 12}, 18)])
def test_a_fit_obeys_limits_that_are_set_within_it(tmp_path, options, steps):
    def lengthen(trainer, module):
        if trainer.current_epoch == 1:
            loop = trainer.fit_loop
            if loop.max_epochs != -1:
                loop.max_epochs = 4
            else:
                loop.epoch_loop.max_steps = 18

    run = fit(tmp_path, Calls(on_train_epoch_start=lengthen), **options)
    assert run.global_step == steps


def test_a_resumed_fit_accepts_limits_that_are_set_as_it_loads(tmp_path):
    """A checkpoint of epoch 3 where the trainer has max_epochs=2."""
    every = ModelCheckpoint(tmp_path, filename="{epoch}")
    fit(tmp_path, every, max_epochs=4, enable_checkpointing=True)

    def lengthen(trainer, module, checkpoint):
        trainer.fit_loop.max_epochs = 5

    run = trainer(tmp_path, [Calls(on_load_checkpoint=lengthen)], max_epochs=2)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        run.fit(uncorrected(), ToyData(), ckpt_path=tmp_path / "epoch=3.ckpt", weights_only=True)
    assert run.current_epoch == 5
    assert run.global_step == 30


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_fit_saved_before_an_epochs_first_batch_is_known_when_it_resumes(tmp_path):
    """Lightning takes it for that far as the epoch before was, until the epoch's loop forgets that it restarts."""

    def stop(trainer, module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    save = OnExceptionCheckpoint(tmp_path)
    with pytest.raises(SystemExit):
        fit(tmp_path, Calls(on_train_epoch_start=stop), save, enable_checkpointing=True)
    seen = []

    def look(trainer, module):
        loop = trainer.fit_loop
        seen.append((loop.restarted_on_epoch_start, loop.epoch_loop.restarting))
        loop.epoch_loop.restarting = False

    run = trainer(tmp_path, [Calls(on_train_start=look)], max_epochs=2)
    run.fit(uncorrected(), ToyData(), ckpt_path=tmp_path / "on_exception.ckpt", weights_only=True)
    assert seen == [(True, True)]
    assert run.global_step == 12


def test_the_trainer_can_pass_for_one_that_validates(tmp_path):
    seen = []

    def toggle(trainer, module):
        trainer.validating = True
        seen.append((trainer.training, trainer.validating))
        trainer.training = True
        seen.append((trainer.training, trainer.validating))

    fit(tmp_path, Calls(on_train_epoch_start=toggle), max_epochs=1)
    assert seen == [(False, True), (True, False)]


def test_transfer_hooks_that_nobody_wrote_do_nothing_but_move(tmp_path):
    seen = {}

    def look(trainer, module):
        batch = [torch.zeros(2), {"labels": torch.ones(2)}]
        seen["before"] = module._on_before_batch_transfer(batch) is batch
        moved = trainer.strategy.batch_to_device(batch)
        seen["moved"] = moved[0] is batch[0] and moved[1]["labels"] is batch[1]["labels"]
        seen["converted"] = trainer.precision_plugin.convert_input(batch) is batch
        for owner, base in ((module, "DataHooks"), (trainer.datamodule, "DataHooks"), (trainer.strategy, "Strategy")):
            seen[type(owner).__name__] = base in [kind.__name__ for kind in type(owner).__mro__]

    fit(tmp_path, Calls(on_train_start=look), max_epochs=1)
    assert len(seen) == 6
    assert all(seen.values())


def test_what_is_asked_of_the_trainer_is_there(tmp_path):
    seen = {}

    def look(trainer, module):
        batch = [torch.zeros(2), torch.zeros(2)]
        with trainer.precision_plugin.forward_context():
            seen["batch"] = trainer.strategy.batch_to_device(batch)
        seen["broadcast"] = trainer.strategy.broadcast({"a": 1})
        seen["decision"] = trainer.strategy.reduce_boolean_decision(True, all=True)
        seen["precision"] = trainer.precision_plugin.state_dict()
        seen["fn"] = trainer.state.fn == "fit"
        seen["validation"] = trainer.enable_validation
        seen["data"] = isinstance(trainer.datamodule, ToyData)
        seen["dev"] = int(trainer.fast_dev_run)
        seen["devices"] = (trainer.strategy.root_device.type, len(trainer.device_ids))

    fit(tmp_path, Calls(on_train_start=look), max_epochs=1)
    assert len(seen.pop("batch")) == 2
    assert seen == {
        "broadcast": {"a": 1},
        "decision": True,
        "precision": {},
        "fn": True,
        "validation": True,
        "data": True,
        "dev": 0,
        "devices": ("cpu", 1),
    }


def test_names_of_what_is_told_apart_by_name():
    from pytorch_lightning import callbacks, strategies

    for name in ("StochasticWeightAveraging", "BaseFinetuning", "ModelPruning", "WeightAveraging"):
        assert hasattr(callbacks, name)
    for name in ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"):
        assert hasattr(strategies, name)


def test_a_training_step_that_is_replaced_is_taken_after_every_hook_before_it(tmp_path):
    order, model = [], uncorrected()

    def change(batch):
        order.append("changed")
        return batch[0] * 0, batch[1]

    def step(batch, batch_idx):
        order.append(float(batch[0].abs().sum()))
        return type(model).training_step(model, batch, batch_idx)

    model.training_step = step
    undo = []
    begin = Calls(
        on_train_start=lambda *_: undo.append(internals.before_training_steps(model, change)),
        on_train_batch_start=lambda *_: order.append("hook"),
        on_train_end=lambda *_: undo[0](),
    )
    model.on_train_batch_start = lambda *_: order.append("module's hook")
    fit(tmp_path, begin, model=model, max_epochs=1, limit_train_batches=2)
    assert order == ["hook", "module's hook", "changed", 0.0] * 2
    assert model.training_step is step


@pytest.mark.parametrize(("strategy", "ignores"), [("ddp", False), ("ddp_find_unused_parameters_true", True)])
def test_ddp_knows_whether_it_waits_for_every_gradient(tmp_path, strategy, ignores):
    assert internals.ignores_missing_gradients(trainer(tmp_path, strategy=strategy, devices=2)) == ignores
    assert internals.ignores_missing_gradients(trainer(tmp_path))
