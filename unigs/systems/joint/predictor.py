"""The joint model behind ``Predictor``: a batch of one task under its own conditions and noise."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm import tqdm

from unigs.codec import Decoder
from unigs.files import new_folder
from unigs.records import TASKS, Batch, Prediction, UnigsError
from unigs.systems.joint.pipeline import UniGSPipeline
from unigs.systems.predictor import name_task
from unigs.systems.sampling import Sampling, resolve_sampling
from unigs.tasks import RECIPES
from unigs.weights import check_finite, check_target, in_words


class JointPredictor:
    """Our pipeline.

    Args:
        pipeline: the model, on its device.
        name: for tables.
        sampling: what to do in another way than the model remembers.

    Raises:
        UnigsError: steps that no solver can run, whatever the task.
    """

    tasks = TASKS
    decoders = get_args(Decoder)

    def __init__(
        self, pipeline: UniGSPipeline, name: str = "UniGS", sampling: Sampling | None = None
    ) -> None:
        self.pipeline, self.name = pipeline, name
        self._asked = sampling or Sampling()
        refused = []
        for task in self.tasks:  # one that another task's memory spoils may do for the others
            try:
                pipeline.resolve(task, self._asked)
            except UnigsError as error:
                refused.append(error)
        if len(refused) == len(self.tasks):
            raise refused[0]

    @property
    def options(self) -> dict[str, Any]:
        """How each task is sampled."""
        known = self.pipeline.sampling
        return {task: asdict(resolve_sampling(task, self._asked, known)) for task in self.tasks}

    @property
    def side_px(self) -> int:
        return self.pipeline.side_px

    @property
    def multiple_px(self) -> int:
        return self.pipeline.multiple_px

    def __call__(self, batch: Batch, progress: bool = False) -> Prediction:
        task = name_task(batch)
        recipe = RECIPES[task]
        batch = batch.to(self.pipeline.unet.device)
        steps = self.pipeline.resolve(task, self._asked).count_steps(task)
        with tqdm(total=steps, desc=task, disable=not progress, leave=False) as bar:

            def on_step(step: int, timestep: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
                bar.update()
                return state

            return self.pipeline.predict(
                task,
                image=None if recipe.context == "colormap" else batch.image,
                labels=batch.labels if recipe.context == "colormap" else None,
                coarse_mask=batch.coarse_mask if recipe.local else None,
                prompt=batch.prompts,
                sampling=self._asked,
                indices=batch.index.tolist(),
                on_step=on_step,
            )

    def decode_again(self, batch: Batch, prediction: Prediction, decoder: str) -> Prediction:
        """The same prediction with the masks that another decoder finds in its colormap."""
        task = name_task(batch)
        asked = replace(self._asked, decoder=decoder)  # type: ignore[arg-type]
        how = self.pipeline.resolve(task, asked)
        image = batch.image.to(prediction.colormap.device)
        found = self.pipeline.decode(task, prediction.colormap, image, how)
        return replace(prediction, labels=found.labels, scores=found.scores)

    def save(self, folder: str, half: bool = False) -> None:
        """Write a folder of stock components.

        Args:
            folder: an older pipeline there is replaced at once or not at all.
            half: store weights in half precision.

        Raises:
            UnigsError: other files lie there, or weights are not finite, at half precision perhaps.
        """
        target, pipeline = Path(folder), self.pipeline
        check_target(target)
        pipeline.vae.register_to_config(_name_or_path="")  # where the base lay is nobody's business
        if half:
            pipeline.to(torch.float16)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            where = f"{type(part).__name__}{' in half precision' * half}"
            check_finite(part.state_dict().items(), where)
        with new_folder(target) as new, in_words("room and rights to write", target):
            pipeline.save_pretrained(new)


def load_joint(
    folder: str, name: str, device: str = "cpu", sampling: Sampling | None = None
) -> JointPredictor:
    """The predictor of a pipeline folder, on a device.

    Raises:
        UnigsError: the folder holds no pipeline, or a damaged one.
    """
    pipeline = UniGSPipeline.load(folder)
    if device == "cpu":
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.float()  # half precision crawls there
    return JointPredictor(pipeline.to(device), name, sampling)
