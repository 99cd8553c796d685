"""A mistake on the command line is answered in one sentence that says what was probably meant."""

from pathlib import Path

import pytest

from noisylightning.cli import main

DIGITS = f"--config={Path(__file__).parents[2]}/configs/digits/mlp.yaml"


@pytest.mark.parametrize(
    ("arguments", "option", "meant"),
    [
        (["--data=DigitDataModule"], "--data", "DigitsDataModule"),
        (["--data.noise=HumanNois"], "--data.noise", "HumanNoise"),
        (["--model.correction=ForwardCorection"], "--model.correction", "ForwardCorrection"),
        (["--model.correction.loss=CrossEntrop"], "--model.correction.loss", "CrossEntropy"),
        (["--model.backbone=MPL"], "--model.backbone", "noisylightning.models.MLP"),
        (["--model.optimizer=Adamm"], "--model.optimizer", "Adam"),
        (["--trainer.callbacks+=FineTuneTrusted"], "--trainer.callbacks", "FineTuneOnTrusted"),
        (["--trainer.logger=WandbLoger"], "--trainer.logger", "WandbLogger"),
    ],
)
def test_a_misspelt_class_names_the_nearest(arguments, option, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", DIGITS, *arguments])
    name = arguments[0].partition("=")[2]
    sentence = f"noisylightning: {option}: there is no class {name}; did you mean {meant}? {option}.help lists those"
    assert str(stopped.value).startswith(sentence)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to do: quick, fit, validate, test, predict, estimate"),
        (["fitt"], "there is no command fitt; did you mean fit?"),
        (["fit"], "--model must be given"),
        (["fit", "--config=nowhere.yaml"], "--config: File does not exist"),
        (["fit", DIGITS, "--trainer.max_epoch=3"], "no option --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        (["fit", DIGITS, "--data.nose=3"], "'nose' is not accepted by DigitsDataModule; did you mean noise?"),
        (["fit", DIGITS, "--model.backbone.hiden=3"], "Option 'hiden' is not accepted by MLP; did you mean hidden?"),
        (["fit", DIGITS, "--data.batch_size=x"], "--data.batch_size: expected int"),
        (["fit", DIGITS, "--data=ImageFolderDataModule"], "set root (--data.root)"),
        (["fit", DIGITS, "--trainer.accelerator=foo"], "--trainer: You selected an invalid accelerator name"),
        (["fit", "--data=DatasetDataModule", "--data.train=torch.utils.data.TensorDataset", "--data.num_classes=2",
          "--model=NoisyLabelClassifier", "--model.backbone=noisylightning.models.MLP"],
         "DatasetDataModule has no num_features that the network could take: give --model.backbone.in_features."),
        (["estimate"], "estimate needs --model and --data"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    sentence = str(stopped.value)
    assert sentence.startswith("noisylightning: ")
    assert message in sentence
    assert "\n" not in sentence
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ModuleNotFoundError("Requirement 'wandb>=0.12.10' not met. HINT: Try running"),
            "pip install 'wandb>=0.12.10'",
        ),
        (ModuleNotFoundError("No module named 'wandb.sdk'", name="wandb.sdk"), "pip install 'wandb'"),
        (ModuleNotFoundError("Neither tensorboard nor tensorboardX is available.\nTry"), "Neither tensorboard nor"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def missing(self, save_dir):
        raise error

    monkeypatch.setattr("pytorch_lightning.loggers.CSVLogger.__init__", missing)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", DIGITS, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."])
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_an_error_of_ours_in_the_making_keeps_its_traceback(tmp_path, monkeypatch):
    """No package is missing where a module of noisylightning is."""
    monkeypatch.chdir(tmp_path)

    def broken(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'noisylightning.x'", name="noisylightning.x")

    monkeypatch.setattr("noisylightning.cli.commands.NoisyLightningCLI", broken)
    with pytest.raises(ModuleNotFoundError):
        main(["fit", DIGITS])
