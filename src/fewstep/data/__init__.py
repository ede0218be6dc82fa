"""Real samples, wherever they lie: listed and decoded here alone, for folders, data sets, arrays and streams alike.

numpy only; Pillow, mlxtend, datasets and pyarrow are imported when a source needs them. Both the trainer and calibration read
data here, so the split into training and held-out samples exists once.
"""

from fewstep.data.images import Images, described
from fewstep.data.samples import Labels, Samples, batches, classes, digest, positions
from fewstep.data.sources import images_like, numbered_like, open_images

__all__ = [
    "Images",
    "Labels",
    "Samples",
    "batches",
    "classes",
    "described",
    "digest",
    "images_like",
    "numbered_like",
    "open_images",
    "positions",
]
