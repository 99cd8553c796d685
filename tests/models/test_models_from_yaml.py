"""Every backbone is built from what a YAML file can say."""

import jsonargparse
import pytest
import torch
import yaml
from torch import nn

import noisylightning.models

CASES = {
    "MLP": ("{in_features: 12, num_classes: 3, hidden: [8, 8], dropout: 0.1}", (2, 3, 2, 2)),
    "CIFARResNet": ("{depth: 14, num_classes: 3, shortcut: B}", (2, 3, 16, 16)),
    "ResNet34": ("{num_classes: 3}", (2, 3, 16, 16)),
    "TorchvisionModel": ("{name: squeezenet1_1, num_classes: 3}", (2, 3, 64, 64)),
    "TimmModel": ("{name: test_resnet, num_classes: 3}", (2, 3, 64, 64)),
    "HuggingFaceClassifier": ("{name: FOLDER, num_classes: 3, task: image, pretrained: false}", (2, 3, 16, 16)),
    "EmbeddingClassifier": ("{vocab_size: 9, num_classes: 3, length: 6}", (2, 6)),
    "LSTMClassifier": ("{vocab_size: 9, num_classes: 3, embedding_dim: 4, hidden_dim: 4}", (2, 6)),
    "TransformerClassifier": ("{vocab_size: 9, num_classes: 3, dim: 8, heads: 2, layers: 1}", (2, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_backbone_from_yaml(name, tmp_path):
    arguments, shape = CASES[name]
    if name == "TimmModel":
        pytest.importorskip("timm")
    if name == "HuggingFaceClassifier":
        transformers = pytest.importorskip("transformers")
        size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        transformers.ViTConfig(image_size=16, patch_size=8, **size).save_pretrained(tmp_path)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "backbone")
    init_args = yaml.safe_load(arguments.replace("FOLDER", str(tmp_path)))
    config = {"backbone": {"class_path": f"noisylightning.models.{name}", "init_args": init_args}}
    backbone = parser.instantiate_classes(parser.parse_object(config)).backbone
    assert type(backbone) is getattr(noisylightning.models, name)
    inputs = torch.zeros(shape) if len(shape) == 4 else torch.ones(shape, dtype=torch.long)
    assert backbone.eval()(inputs).shape == (2, 3)


def test_no_backbone_is_forgotten():
    public = {name for name in noisylightning.models.__all__ if isinstance(getattr(noisylightning.models, name), type)}
    assert public - {"BatchNormHead", "Standardize"} == set(CASES)
