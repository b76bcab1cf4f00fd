"""The manifests that the report is made of: what their paths say, and what it takes from each stage (see `forms`)."""

from pathlib import Path
from typing import NamedTuple

from pydantic import NonNegativeFloat, NonNegativeInt

from tokenunify import layout
from tokenunify.config import BASELINE
from tokenunify.store import forms, manifest


class Piece(forms.Form):
    """a part that a neuron and a segment share"""

    id: int
    voxels: int
    position: list[int]


class Error(forms.Form):
    """an object that is split or merges"""

    id: int
    voxels: int
    bits: float
    pieces: list[Piece]


class Scored(forms.Timed):
    """evaluate"""

    voi: float
    splits: list[Error]
    merges: list[Error]
    expected_run_length_nm: float | None = None
    run_length_share: float | None = None


class Energy(forms.Timed):
    """agglomerate"""

    energy: float = 0.0


class Pair(forms.Form):
    """two blockings"""

    blocks: list[forms.Three]
    voi_split: float
    voi_merge: float
    voi: float
    arand: float


class Compared(forms.Timed):
    """blockings"""

    pairs: list[Pair]


class Tuning(forms.Timed):
    """tune"""

    value: float
    curve: list[dict[str, float]]
    volumes: list[str]


class Attempts(forms.Form):
    """a training's run"""

    steps: NonNegativeInt
    seconds: NonNegativeFloat
    device: str


class Selected(Attempts):
    """a fine-tuning's run"""

    best_step: int | None
    best_validation_loss: float | None


class Settings(forms.Form):
    """a pre-training's configuration"""

    objectives: list[str]
    mode: str
    ordering: str | dict


class Pretraining(forms.Trained, forms.Network):
    """a pre-training"""

    seed: int
    pretrain: Settings
    inputs: dict[str, str]
    run: Attempts


class Kept(forms.Form):
    """a training's configuration"""

    checkpoint: str


class Training(forms.Trained, forms.Network):
    """a training"""

    seed: int
    pretraining: str
    finetune: Kept
    inputs: dict[str, str]
    run: Selected


FORMS: dict[str, type[forms.Form]] = {
    "ingest": forms.Volume,
    "pretrain": Pretraining,
    "finetune": Training,
    "tune": Tuning,
    "predict": forms.Timed,
    "baseline": forms.Timed,
    "fragments": forms.Timed,
    "rag": forms.Timed,
    "relabel": forms.Timed,
    "evaluate": Scored,
    "agglomerate": Energy,
    "blockings": Compared,
}
"""By the stage of `Made`."""


class Made(NamedTuple):
    """A manifest, and what its path says about it."""

    path: Path
    stage: str
    volume: str
    model: str
    """Or pre-training."""
    seed: int
    name: str
    """Segmentation or fragments; empty where a stage has neither."""

    @property
    def read(self) -> dict:
        """Content and run."""
        return manifest.read(self.path, FORMS[self.stage])


def locate(path: Path) -> Made:
    """What the place of a manifest says about it; InputError for a path that no stage writes."""
    stage, names = layout.locate(path)
    return Made(
        path,
        stage,
        volume=names.get("volume", ""),
        model=names.get("model") or names.get("pretraining") or (BASELINE if stage == "baseline" else ""),
        seed=int(names.get("seed", 0)),
        name=names.get("segmentation") or names.get("fragments") or "",
    )
