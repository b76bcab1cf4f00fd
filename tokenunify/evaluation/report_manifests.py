"""What the report takes from the manifest of each stage (see `forms`)."""

from pydantic import NonNegativeFloat, NonNegativeInt

from tokenunify.store import forms


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
"""By the stage of `report.Made`."""
