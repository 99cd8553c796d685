import os
import re

import pytest
import torch
import torchvision.models

from noisylightning.models import HuggingFaceClassifier, TimmModel, TorchvisionModel
from noisylightning.models.pretrained import read_state_dict

SMALL = "shufflenet_v2_x0_5"  # torchvision's smallest, 1.4 million parameters


def same_state(first, second, but=()):
    assert first.keys() == second.keys()
    return {key for key in first if not torch.equal(first[key], second[key])} == set(but)


def one_sentence(info):
    message = str(info.value)
    assert "\n" not in message
    assert len(re.findall(r"\.(?=\s|$)", message)) == 1, message


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    torch.manual_seed(0)
    network = torchvision.models.get_model(SMALL, num_classes=5)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(network.state_dict(), path)
    return path, network.state_dict()


# --- reading a file ---------------------------------------------------------------------------------------------------


def test_state_dict_bare_or_wrapped(tmp_path):
    state = {"a.weight": torch.arange(3.0)}
    for wrapped in (state, {"state_dict": state, "epoch": 3}, {"model": state}):
        torch.save(wrapped, tmp_path / "w.pth")
        assert same_state(read_state_dict(tmp_path / "w.pth"), state)


def test_state_dict_from_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"a": torch.arange(3.0)}, tmp_path / "w.safetensors")
    assert same_state(read_state_dict(tmp_path / "w.safetensors"), {"a": torch.arange(3.0)})
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    with pytest.raises(ValueError, match="damaged") as info:
        read_state_dict(tmp_path / "bad.safetensors")
    one_sentence(info)


class Exploit:
    def __reduce__(self):
        return (os.system, ("true",))


@pytest.mark.parametrize("content", [{"a": Exploit()}, torch.zeros(3), {}, {"a": "text"}])
def test_refuses_files_that_hold_more_or_less_than_tensors(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"holds (more|no)") as info:
        read_state_dict(tmp_path / "w.pth")
    one_sentence(info)


def test_refuses_truncated_and_missing_files(tmp_path, small_file):
    whole = small_file[0].read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged") as info:
        read_state_dict(tmp_path / "cut.pth")
    one_sentence(info)
    with pytest.raises(FileNotFoundError, match="no weights file") as info:
        TorchvisionModel(SMALL, 5, weights_file=tmp_path / "absent.pth")
    one_sentence(info)


# --- torchvision ------------------------------------------------------------------------------------------------------


def test_torchvision_loads_a_local_file_in_full(small_file):
    path, state = small_file
    assert same_state(TorchvisionModel(SMALL, 5, weights_file=path).network.state_dict(), state)


def test_torchvision_replaces_only_the_head(small_file):
    path, state = small_file
    loaded = TorchvisionModel(SMALL, 3, weights_file=path).network.state_dict()
    assert loaded["fc.weight"].shape == (3, 1024)
    assert same_state(loaded | {"fc.weight": state["fc.weight"], "fc.bias": state["fc.bias"]}, state)


def test_torchvision_published_weights_by_name(monkeypatch):
    torch.manual_seed(0)
    state = torchvision.models.get_model(SMALL).state_dict()
    published = torchvision.models.get_model_weights(SMALL)
    monkeypatch.setattr(published, "get_state_dict", lambda self, **_: state)
    assert same_state(TorchvisionModel(SMALL, 1000, weights="DEFAULT").network.state_dict(), state)
    assert TorchvisionModel(SMALL, 14, weights="IMAGENET1K_V1").network.fc.out_features == 14


def test_torchvision_knows_densenets_published_names(tmp_path):
    state = torchvision.models.densenet121(num_classes=3).state_dict()
    old = {re.sub(r"(denselayer\d+\.)(norm|conv)(\d)\.", r"\1\2.\3.", key): value for key, value in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "dense.pth")
    assert same_state(
        TorchvisionModel("densenet121", 3, weights_file=tmp_path / "dense.pth").network.state_dict(), state
    )


def test_torchvision_drops_auxiliary_heads(tmp_path):
    torch.save(torchvision.models.googlenet(num_classes=3, init_weights=False).state_dict(), tmp_path / "g.pth")
    model = TorchvisionModel("googlenet", 2, weights_file=tmp_path / "g.pth").train()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 2)


FAMILIES = [
    *("alexnet", "convnext_tiny", "efficientnet_b0", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2"),
    *("mobilenet_v3_small", "resnext50_32x4d", "squeezenet1_1", "swin_t", "vgg11", "vit_b_16"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_finds_the_head_of_every_family(name):
    with torch.device("meta"):
        model = TorchvisionModel(name, num_classes=7)
        state = torchvision.models.get_model(name, num_classes=5).state_dict()
    heads = [key for key, value in state.items() if value.shape[:1] == (5,) and not key.startswith("AuxLogits.")]
    with torch.device("meta"):
        model._load(state, name, "the file")
    assert {state[key].shape[0] for key in heads} == {7}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet_18"}, "no classification network 'resnet_18'"),
        ({"name": "fcn_resnet50"}, "no classification network"),
        ({"name": SMALL, "weights": "IMAGENET"}, "publishes no weights 'IMAGENET' .* IMAGENET1K_V1"),
        ({"name": SMALL, "weights": "DEFAULT", "weights_file": "w.pth"}, "either weights"),
    ],
)
def test_torchvision_refuses(arguments, message):
    with pytest.raises(ValueError, match=message) as info:
        TorchvisionModel(num_classes=2, **arguments)
    one_sentence(info)


def test_torchvision_refuses_another_networks_weights(small_file, tmp_path):
    path, state = small_file
    with pytest.raises(ValueError, match="not for this architecture") as info:
        TorchvisionModel("squeezenet1_1", 5, weights_file=path)
    one_sentence(info)
    faults = {"unknown, extra the first": {"extra": torch.ones(1)}, "has shape": {"conv1.0.weight": torch.ones(24)}}
    for message, fault in faults.items():
        torch.save(state | fault, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=f"does not fit {SMALL}.*{message}") as info:
            TorchvisionModel(SMALL, 5, weights_file=tmp_path / "w.pth")
        one_sentence(info)
    torch.save({key: value for key, value in state.items() if "conv5" not in key}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="are missing") as info:
        TorchvisionModel(SMALL, 5, weights_file=tmp_path / "w.pth")
    one_sentence(info)


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timm_local_file(tmp_path, name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    state = timm.create_model(name, num_classes=6).state_dict()
    torch.save(state, tmp_path / "w.pth")
    assert same_state(TimmModel(name, 6, weights_file=tmp_path / "w.pth").network.state_dict(), state)
    other = TimmModel(name, 4, weights_file=tmp_path / "w.pth").network
    head = other.pretrained_cfg["classifier"]
    assert other.get_classifier().out_features == 4
    kept = {key: value for key, value in other.state_dict().items() if not key.startswith(head)}
    assert same_state(kept, {key: value for key, value in state.items() if not key.startswith(head)})


def test_timm_refuses(tmp_path):
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="no network 'resnet_unknown'"):
        TimmModel("resnet_unknown", 2)
    with pytest.raises(ValueError, match="either pretrained=True or weights_file"):
        TimmModel("test_resnet", 2, pretrained=True, weights_file="w.pth")
    state = timm.create_model("test_resnet", num_classes=2).state_dict()
    first = next(iter(state))
    for fault, message in ((first, "does not fit timm's test_resnet"), ("fc.weight", "not for this architecture")):
        torch.save({key: value for key, value in state.items() if key != fault}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=message) as info:
            TimmModel("test_resnet", 2, weights_file=tmp_path / "w.pth")
        one_sentence(info)


def test_timm_grey_images():
    pytest.importorskip("timm")
    assert TimmModel("test_resnet", 3, in_channels=1)(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=40, dim=16, hidden_dim=32, n_heads=2, n_layers=1, num_labels=3, max_position_embeddings=32
    )
    folder = tmp_path_factory.mktemp("distilbert")
    transformers.DistilBertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_hugging_face_local_weights(text_folder):
    torch.manual_seed(1)
    first, second = (HuggingFaceClassifier(str(text_folder), 3).eval() for _ in range(2))
    assert same_state(first.state_dict(), second.state_dict())
    tokens = torch.tensor([[4, 5, 6], [7, 8, 9]])
    torch.testing.assert_close(first(tokens), first.network(input_ids=tokens).logits)


def test_hugging_face_replaces_only_the_head(text_folder):
    whole, other = (HuggingFaceClassifier(str(text_folder), classes) for classes in (3, 5))
    assert other(torch.tensor([[4, 5]])).shape == (1, 5)
    drop = {"network.classifier.weight", "network.classifier.bias"}
    kept = [{k: v for k, v in model.state_dict().items() if k not in drop} for model in (whole, other)]
    assert same_state(*kept)


def test_hugging_face_masks_padding(text_folder):
    model = HuggingFaceClassifier(str(text_folder), 3).eval()
    tokens = torch.tensor([[4, 5, 6]])
    padded = torch.nn.functional.pad(tokens, (0, 5), value=model.padding_index)
    torch.testing.assert_close(model(padded), model(tokens))


def test_hugging_face_takes_named_inputs(text_folder):
    model = HuggingFaceClassifier(str(text_folder), 3, pretrained=False).eval()
    tokens = torch.tensor([[4, 5, 6]])
    torch.testing.assert_close(model({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}), model(tokens))


def test_hugging_face_image_classifier(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    config.save_pretrained(tmp_path)
    model = HuggingFaceClassifier(str(tmp_path), 4, task="image", pretrained=False)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 4)


def test_hugging_face_refuses(text_folder, tmp_path):
    with pytest.raises(ValueError, match="task must be") as info:
        HuggingFaceClassifier(str(text_folder), 3, task="sound")
    one_sentence(info)
    with pytest.raises(ValueError, match="cannot be built"):
        HuggingFaceClassifier(str(tmp_path), 3)
    (tmp_path / "config.json").write_text((text_folder / "config.json").read_text().replace('"dim": 16', '"dim": 8'))
    (tmp_path / "model.safetensors").write_bytes((text_folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="do not fit its configuration") as info:
        HuggingFaceClassifier(str(tmp_path), 3)
    one_sentence(info)


# --- the extras are optional ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "library", "extra"), [(TimmModel, "timm", "timm"), (HuggingFaceClassifier, "transformers", "huggingface")]
)
def test_missing_library_names_its_extra(monkeypatch, model, library, extra):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ImportError, match=rf"noisylightning\[{extra}\]"):
        model("any", 2)
