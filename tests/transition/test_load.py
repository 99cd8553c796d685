"""T read from a file; the plain forms are in test_build."""

import pytest
import torch

from noisylightning import ForwardCorrection
from noisylightning.transition import load_transition

NAMED = ',cat,dog\ncat,0.9,0.1\n"dog",0.2,0.8\n'


@pytest.mark.parametrize(
    "text",
    [
        NAMED,
        NAMED.replace("\n", "\r\n"),
        "\ufeff" + NAMED,  # as spreadsheets save it
        "clean \\ noisy" + NAMED,
        NAMED + "\n\n",
        ",0,1\n0,0.9,0.1\n1,0.2,0.8\n",  # names that are numbers
        "0.9,0.1\n0.2,0.8\n",
        "# of run 7\n0.9,0.1\n0.2,0.8\n",
    ],
)
def test_a_table_is_read_with_and_without_names(tmp_path, text):
    path = tmp_path / "T.csv"
    path.write_bytes(text.encode())
    expected = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    assert torch.equal(load_transition(path), expected)
    assert torch.equal(ForwardCorrection(path).transition, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NAMED.replace("cat,0.9", "fox,0.9"), "columns are named cat, dog, but its rows fox, dog"),
        (NAMED.replace('"dog",0.2,0.8\n', ""), "columns are named cat, dog, but its rows cat"),
        (NAMED.replace("0.8", "most"), "could not convert"),
        (NAMED.replace("0.8", "0.9"), "sum"),
        (NAMED.replace(",0.8", ""), "T.csv"),
        ("", "T.csv"),
    ],
)
def test_a_table_that_holds_no_transition_is_refused(tmp_path, text, message):
    path = tmp_path / "T.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_transition(path)
