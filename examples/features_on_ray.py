"""Compute features of any number of images on a Ray cluster, as Parquet files, from a finished run.

pip install 'ray[data]'
python examples/features_on_ray.py --init runs/pretrain --images photos --out runs/features --workers 2

Every machine of the cluster needs the packages and access to the run, the images and the output, such as on a shared
disk. Besides the workers' processors, Ray needs one for writing.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import map_vision
from map_core.tasks.weights import read_description
from map_vision.data import DataConfig
from map_vision.domain import DOMAIN


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--init", type=Path, required=True, help="directory of a run")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with a copy of the model")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker, 0.5 for two on one")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8192, help="of a file, which one worker computes")
    arguments = parser.parse_args()

    import ray.data  # here, as the rest of the file does not need Ray

    init = arguments.init.resolve()
    names = open_images(init, str(arguments.images.resolve())).names
    parts = max(arguments.workers, math.ceil(len(names) / arguments.rows))
    paths = ray.data.from_items([{"path": name} for name in names], override_num_blocks=parts)
    paths.map_batches(
        Worker,
        fn_constructor_args=(init,),
        batch_size=arguments.batch_size,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=arguments.workers),
        num_gpus=arguments.gpus,
    ).write_parquet(str(arguments.out.resolve()))


def open_images(init: Path, images: str | list[str]) -> Any:
    """Images prepared for the run's model, read on access."""
    config = DOMAIN.models.read_model_config(init)
    return DOMAIN.open_files(images, DataConfig(), config, read_description(init))


class Worker:
    """A process of the cluster: it loads the run once, then maps batches of paths to batches of features."""

    def __init__(self, init: Path) -> None:
        self.init = init
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = map_vision.load(init).to(self.device)

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        import pyarrow  # comes with Ray Data

        paths = batch["path"].tolist()
        features = self.features(paths)
        values = pyarrow.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1])
        return pyarrow.table({"path": paths, "features": values})

    @torch.inference_mode()
    def features(self, paths: list[str]) -> np.ndarray:
        """The input of the model's head for each image."""
        images = torch.stack([image for image, _ in open_images(self.init, paths)]).to(self.device)
        tokens = self.model.forward_features(images)
        return self.model.forward_head(tokens, pre_logits=True).float().cpu().numpy()


if __name__ == "__main__":
    main()
