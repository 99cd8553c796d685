"""Encoders: pretrained networks that make a vector of an image or a text, with the transform that each needs."""

from noisylightning.encoders.choose import choose_encoder
from noisylightning.encoders.encoder import Encoder
from noisylightning.encoders.exported import exported_encoder, onnx_encoder
from noisylightning.encoders.huggingface import sentence_transformers_encoder, transformers_encoder
from noisylightning.encoders.images import ImageTransform, rgb_images
from noisylightning.encoders.load import load_encoder
from noisylightning.encoders.packaged import efficientnet_lite0, minilm
from noisylightning.encoders.vision import timm_encoder, torchvision_encoder

__all__ = [
    "Encoder",
    "ImageTransform",
    "choose_encoder",
    "efficientnet_lite0",
    "exported_encoder",
    "load_encoder",
    "minilm",
    "onnx_encoder",
    "rgb_images",
    "sentence_transformers_encoder",
    "timm_encoder",
    "torchvision_encoder",
    "transformers_encoder",
]
