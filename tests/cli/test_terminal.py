"""What a run shows on a terminal."""

import fcntl
import logging
import os
import re
import struct
import sys
import termios
import warnings

import pytest
from pytorch_lightning.utilities import rank_zero_info
from toy import ToyData, anchored, classifier, trainer, uncorrected

from noisylightning.cli.terminal import Bar, EpochLines, progress, quiet_terminal


@pytest.fixture
def shown(monkeypatch):
    """Lightning's logger with a handler, as in a program of its own; what it lets through."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    handler = Keep()
    for name in ("pytorch_lightning", "lightning.pytorch"):  # the second where another test has imported lightning
        log = logging.getLogger(name)
        monkeypatch.setattr(log, "handlers", [handler])
        monkeypatch.setattr(log, "level", logging.INFO)
    return records


def test_only_lightnings_talk_is_left_out_and_only_in_the_command(shown, tmp_path):
    with quiet_terminal():
        trainer(tmp_path, [anchored(1)], max_epochs=2).fit(uncorrected(), ToyData())
        rank_zero_info("ours")
        logging.getLogger("pytorch_lightning.anything").warning("a warning")
    stages = [text.split(":")[0] for text in shown[:-2]]
    assert [text for text in stages if not text.startswith("T estimated")] == ["Stage one", "Stage two"]
    assert shown[-2:] == ["ours", "a warning"]
    trainer(tmp_path, [], max_epochs=1)
    assert any("GPU available" in text for text in shown[-4:])  # a user's own Lightning speaks as ever


def test_what_a_user_asks_a_callback_of_lightning_to_say_is_kept(shown):
    def say(file: str) -> None:
        path = f"/somewhere/pytorch_lightning/{file}"
        log = logging.getLogger("pytorch_lightning")
        log.handle(logging.LogRecord("pytorch_lightning", logging.INFO, path, 1, file, (), None))

    with quiet_terminal():
        say("callbacks/timer.py")
        say("trainer/setup.py")
    assert shown == ["callbacks/timer.py"]


def test_warnings_are_shown_above_the_bar(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with quiet_terminal():
            warnings.warn("look", UserWarning, stacklevel=1)
    assert "UserWarning: look" in capsys.readouterr().err


class Terminal:
    """What claims to be a terminal of 80 columns, and keeps what is written."""

    def __init__(self) -> None:
        self.text = ""
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def fileno(self):
        return self.slave

    def close(self):
        os.close(self.master)
        os.close(self.slave)

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_the_bar_fits_80_columns_and_says_where_the_fit_is(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    bar = progress([])
    assert isinstance(bar, Bar)
    fit = trainer(tmp_path, [anchored(2), bar], max_epochs=4, enable_progress_bar=True)
    fit.fit(classifier(), ToyData())
    fit.test(classifier(), ToyData(), verbose=False)
    terminal.close()
    text = re.sub(r"\x1b\[\w", "", terminal.text)  # moves of the cursor
    lines = [line for line in text.replace("\n", "\r").split("\r") if "epoch" in line]
    assert max(map(len, lines)) <= 80
    assert any("Stage 1, epoch 1/3" in line and "val_loss=" in line and ", loss=" in line for line in lines)
    assert any("Stage 2, epoch 3/3" in line for line in lines)
    assert "v_num" not in terminal.text


def test_a_log_file_gets_a_line_an_epoch_if_epochs_are_long(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    lines = progress([])
    assert isinstance(lines, EpochLines)
    trainer(tmp_path, [lines], max_epochs=2).fit(uncorrected(), ToyData())
    assert not [text for text in caplog.messages if text.startswith("Epoch")]
    monkeypatch.setattr("noisylightning.cli.terminal._SECONDS_BETWEEN_LINES", 0.0)
    trainer(tmp_path, [EpochLines()], max_epochs=2).fit(uncorrected(), ToyData())
    told = [text for text in caplog.messages if text.startswith("Epoch")]
    assert [text.split(":")[0] for text in told] == ["Epoch 0/1", "Epoch 1/1"]
    assert "val_loss 1." in told[0] or "val_loss 0." in told[0]


def test_a_bar_of_the_users_own_is_left_alone():
    assert progress([Bar()]) is None
