"""Encoders by name or file: their features beside what the libraries give by themselves, and what goes wrong."""

import json
import zipfile

import pytest
import torch
import torchvision
from torch import nn

from noisylightning.encoders import Encoder, load_encoder

IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TEXTS = ["a fine film", "dull", "a dull film indeed a film"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "fine", "film", "dull", "indeed"]


@pytest.fixture(autouse=True)
def without_a_network(monkeypatch):
    """Found out at once, as the hub's own variable says, and for torchvision by a download that fails."""

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", "absent")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder of a tiny model of texts, with its tokenizer."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_timm_gives_what_its_headless_network_gives(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "vit.pt")
    encoder = load_encoder("timm:test_vit", tmp_path / "vit.pt", size=64)  # position embeddings are scaled
    assert encoder.image_size == (64, 67)
    assert encoder(IMAGES).shape == (3, 64)
    same = load_encoder("timm:test_vit", tmp_path / "vit.pt")
    prepared = same.transform(IMAGES)
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(prepared), pre_logits=True)
    torch.testing.assert_close(same(IMAGES), expected)
    assert same.weights_checksum() == load_encoder("timm:test_vit", tmp_path / "vit.pt").weights_checksum()
    assert same.described() != encoder.described()


def test_timm_takes_a_folder(tmp_path):
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_resnet", num_classes=7)
    timm.models.save_for_hf(network, tmp_path / "mine")
    encoder = load_encoder(f"timm:{tmp_path / 'mine'}")
    assert encoder.name == "timm:mine"
    assert encoder(IMAGES).shape == (3, network.num_features)


def test_torchvision_gives_what_goes_into_its_last_layer(tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    encoder = load_encoder("torchvision:shufflenet_v2_x0_5", tmp_path / "weights.pt", size=32)
    with torch.inference_mode():
        logits = network(encoder.transform(IMAGES))
        torch.testing.assert_close(network.fc(encoder(IMAGES)), logits)


def test_texts_are_pooled_over_their_own_tokens(bert):
    import transformers

    encoder = load_encoder(f"transformers:{bert}", takes="texts")
    assert encoder.takes == "texts"
    model, tokenizer = (kind.from_pretrained(bert) for kind in (transformers.AutoModel, transformers.AutoTokenizer))
    alone = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(dim=1) for text in TEXTS]
    torch.testing.assert_close(encoder(TEXTS), torch.cat(alone).detach())  # padding changes nothing
    long = " ".join(["film"] * 40)
    assert encoder([long]).equal(encoder([f"{long} film"]))  # cut where the model ends


def test_sentences_are_encoded_from_a_folder_and_from_its_zip(bert, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers import models

    words = models.Transformer(str(bert), max_seq_length=8)
    model = sentence_transformers.SentenceTransformer(modules=[words, models.Pooling(16), models.Normalize()])
    model.save(str(tmp_path / "model"))
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for path in (tmp_path / "model").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "model"))
    found = [load_encoder(f"sentence-transformers:{tmp_path / name}") for name in ("model", "model.zip")]
    expected = torch.from_numpy(model.encode(TEXTS))
    for encoder in found:
        torch.testing.assert_close(encoder(TEXTS), expected)
    assert found[0].weights_checksum() == found[1].weights_checksum()
    assert found[0].described() == found[1].described()
    assert "longest=8" in found[0].described()


def test_a_model_of_images_comes_with_its_processor(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path)
    encoder = load_encoder(f"transformers:{tmp_path}")
    assert (encoder.takes, encoder.image_size) == ("images", (16, 16))
    pixels = processor(images=list(IMAGES), return_tensors="pt")["pixel_values"]
    # Its weights have no pooling of their own: the class token.
    torch.testing.assert_close(encoder(IMAGES), model(pixels).last_hidden_state[:, 0].detach())


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """The mean of each channel, times a matrix."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, path = onnx.helper, tmp_path_factory.mktemp("onnx") / "means.onnx"
    matrix = helper.make_tensor("matrix", onnx.TensorProto.FLOAT, (3, 2), [1, 0, 0, 1, 1, 1])
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "matrix"], ["features"]),
    ]
    image = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 3, 16, 16])
    features = helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "means", [image], [features], [matrix])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_onnx_takes_images_as_the_file_beside_it_says(onnx_file, tmp_path, caplog):
    caplog.set_level("INFO")
    found = load_encoder(str(onnx_file))
    assert "means.onnx has no means.json beside it" in caplog.text
    means = found.transform(IMAGES).mean(dim=(2, 3))
    expected = torch.stack([means[:, 0] + means[:, 2], means[:, 1] + means[:, 2]], dim=1)
    torch.testing.assert_close(found(IMAGES), expected)
    assert found.replica(torch.device("cpu")) is found
    (tmp_path / "means.onnx").write_bytes(onnx_file.read_bytes())
    (tmp_path / "means.json").write_text(json.dumps({"size": 16, "mean": [0, 0, 0], "std": [1, 1, 1]}))
    raw = load_encoder(str(tmp_path / "means.onnx"))
    assert raw.weights_checksum() == found.weights_checksum()
    means = (IMAGES / 255).mean(dim=(2, 3))
    expected = torch.stack([means[:, 0] + means[:, 2], means[:, 1] + means[:, 2]], dim=1)
    torch.testing.assert_close(raw(IMAGES), expected, atol=0.01, rtol=0)


def test_a_network_of_ones_own_goes_by_its_import_path():
    assert load_encoder("torch.nn.Flatten")(torch.ones(2, 3, 4)).shape == (2, 12)
    assert load_encoder("test_load_encoder.make")(["ab"]).tolist() == [[2.0]]


class Lengths(nn.Module):
    def forward(self, texts):
        return torch.tensor([[float(len(text))] for text in texts])


def make() -> Encoder:
    return Encoder(Lengths(), "texts")


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("timm:resnet18", {}, ["no network", "fetch model.safetensors of timm/resnet18.a1_in1k", "(--weights)"]),
        ("torchvision:resnet18", {}, ["no network", "fetch http", "resnet18-f37072fd.pth", "(--weights)"]),
        ("transformers:bert-base-uncased", {}, ["cannot be downloaded", "config.json", "transformers:FOLDER"]),
        ("sentence-transformers:all-x", {}, ["cannot be downloaded", "modules.json", "sentence-transformers:FOLDER"]),
        ("timm:resnet18", {"weights": "wrong.pt"}, ["wrong.pt", "do not fit timm's resnet18"]),
        ("torchvision:resnet18", {"weights": "wrong.pt"}, ["wrong.pt has no entry fc.weight", "(--weights)"]),
        ("timm:resnet18", {"weights": "absent.pt"}, ["absent.pt", "(--weights)"]),
        ("torchvision:resnet18", {"weights": "absent.pt"}, ["absent.pt", "(--weights)"]),
        ("timm:resnet1800", {}, ["no network 'resnet1800'"]),
        ("torchvision:resnet1800", {}, ["no classification network 'resnet1800'"]),
        ("transformers:empty", {}, ["transformers:empty cannot be loaded", "model_type"]),
        ("sentence-transformers:empty.zip", {}, ["empty.zip is truncated or no .zip"]),
        ("empty.onnx", {}, ["empty.onnx cannot be read as ONNX"]),
        ("empty.pt2", {}, ["empty.pt2 cannot be read"]),
        ("absent.onnx", {}, ["no encoder absent.onnx"]),
        ("minilm", {"weights": "wrong.pt"}, ["brings its weights"]),
        ("minilm", {"size": 64}, ["leave size=64 (--size) out"]),
        ("torchvison:resnet18", {}, ["did you mean torchvision:NAME?"]),
        ("some-net", {}, ["There is no encoder some-net", "timm:NAME", "package.module.name"]),
        ("no.such.thing", {}, ["no encoder no.such.thing to import"]),
        ("math.pi", {}, ["math.pi is a float"]),
    ],
)
def test_what_goes_wrong_is_one_sentence(name, options, parts, tmp_path, monkeypatch):
    for package in ("timm", "transformers", "sentence_transformers", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 2).state_dict(), "wrong.pt")
    (tmp_path / "empty").mkdir()
    for file in ("empty.zip", "empty.onnx", "empty.pt2"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises((ValueError, TypeError, OSError)) as raised:
        load_encoder(name, **options)
    said = str(raised.value)
    assert "\n" not in said
    for part in parts:
        assert part in said


def test_exported_for_one_batch_size_is_refused(tmp_path):
    torch.export.save(torch.export.export(nn.Linear(4, 3), (torch.ones(2, 4),)), tmp_path / "two.pt2")
    with pytest.raises(ValueError, match="exported for batches of 2 alone: export it with a dynamic batch size"):
        load_encoder(str(tmp_path / "two.pt2"))
