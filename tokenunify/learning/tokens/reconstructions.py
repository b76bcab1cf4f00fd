"""Pictures of pre-training: what the network sees and what it makes of it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tokenunify.learning.task import Batch
from tokenunify.learning.tokens.token_prediction import TokenTask
from tokenunify.store import manifest

GAP = 4
"""White pixels between pictures."""


@torch.no_grad()
def write(path: Path, task: TokenTask, batch: Batch) -> np.ndarray:
    """One row per objective: raw, visible and predicted, in the section with most predictions; uint8 (y, x)."""
    task.eval()
    raw = task.grid.of_crop(batch["raw"])
    rows = []
    for name in task.config.objectives:
        seen, made = task.shown(batch, name)
        section = (made != seen)[0, 0].sum((1, 2)).argmax()
        shades = [volume[0, 0, section].float().clamp(0, 1) * 255 for volume in (raw, seen, made)]
        rows.append(_stack([shade.round().to(torch.uint8).cpu().numpy() for shade in shades], axis=1))
    task.train()
    image = _stack(rows, axis=0)
    manifest.replace(path, lambda temporary: Image.fromarray(image).save(temporary, format="png"))
    return image


def _stack(images: list[np.ndarray], axis: int) -> np.ndarray:
    width = [(0, GAP if a == axis else 0) for a in range(2)]
    padded = [np.pad(image, width, constant_values=255) for image in images[:-1]]
    return np.concatenate([*padded, images[-1]], axis)
