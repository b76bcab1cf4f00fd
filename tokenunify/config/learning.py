"""Fine-tuning and prediction, and what every training shares."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tokenunify.config.base import Count, Fraction, Padding, PositiveInt, Shape, Strict

Decay = Annotated[float, Field(ge=0, lt=1)]
Train = Literal["all", "mamba", "encoder", "decoder", "mamba+encoder", "lora"]
"""Parts of a network that fine-tuning changes; the head is always trained."""
NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


class RawAugment(Strict):
    """Probability of each augmentation of raw alone; anisotropic volumes are rotated in the section plane only."""

    flip: Fraction = 0.5
    """Each axis."""
    rotate: Fraction = 0.5
    """Exchange of y and x; of all three axes where the voxels are isotropic."""
    intensity: Fraction = 0.0
    """Contrast, brightness and gamma of the whole crop, and of each section."""


class Augment(RawAugment):
    """Probability of each augmentation of raw and labels."""

    intensity: Fraction = 0.5
    """Contrast, brightness and gamma of the whole crop, and of each section."""
    noise: Fraction = 0.2
    """Gaussian noise."""
    blur: Fraction = 0.1
    """Gaussian blur."""
    missing: Fraction = 0.05
    """A black or absent section."""
    misalign: Fraction = 0.05
    """A shift of all sections behind a random one."""
    elastic: Fraction = 0.1
    """Smooth random deformation in the section plane."""


class Optimisation(Strict):
    """How a network is trained, whatever for, on random crops."""

    crop: Shape = (16, 160, 160)
    """Extent of the raw; targets are those of the network's output, which valid convolutions make smaller."""
    batch_size: PositiveInt = 1
    """Samples of one step, over all GPUs."""
    accumulate: PositiveInt = 1
    """Batches that a GPU's share of the samples is computed in, one after the other, where memory is short."""
    checkpoint_activations: bool = False
    """Compute the maps inside the network's blocks again in the backward pass, where memory is shorter than time."""
    steps: PositiveInt = 1000
    """Steps of the optimiser."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon orthogonalises the steps of hidden weights, AdamW moves the others: fewer, slightly dearer steps."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Highest learning rate, reached after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decay of weights; biases and normalisation are not decayed."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the optimiser's running averages of gradients and of their squares."""
    warmup_steps: Count = 0
    """Steps in which the learning rate rises linearly from 0."""
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up: constant, or along a cosine down to final_learning_rate."""
    final_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Where the cosine ends."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; a larger one is scaled down. null: no limit."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the running average of the weights that is validated and saved; null saves the weights themselves."""
    checkpoint_every: PositiveInt = 100
    """Steps between saved training states, from which a killed run resumes."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Number format of the computation: 32 bits, or mixed with bfloat16 or float16 on a GPU."""


class Finetune(Optimisation):
    """Supervised training of an affinity network."""

    offsets: Annotated[tuple[tuple[int, int, int], ...], Field(min_length=3)] = NEAREST
    """Affinity channels; the first three are the nearest neighbours, more only help training."""
    loss: Literal["mse", "weighted_mse", "bce"] = "weighted_mse"
    """Mean squared error, the same weighted by class balance (the paper's), or binary cross entropy."""
    max_weight: Annotated[float, Field(ge=1)] = 20.0
    """Cap of the class-balance weight."""
    balance: Literal["joint", "channel"] = "joint"
    """Class balance over all channels of a crop, or of each channel by itself."""
    erode_labels: bool | Literal["3d"] = False
    """Turn voxels at the borders between labels into background: in each section, or (3d) across sections too."""
    augment: Augment = Augment()
    """Probability of each augmentation of the training crops."""
    validate_every: PositiveInt = 100
    """Steps between validations."""
    validation_crops: PositiveInt = 8
    """Crops of the validation volumes that each validation averages over."""
    checkpoint: Literal["best", "last"] = "best"
    """Weights handed on: those with the lowest validation loss, or the last."""

    @model_validator(mode="after")
    def nearest_first(self) -> Self:
        if tuple(self.offsets[:3]) != NEAREST:
            raise ValueError(f"offsets must begin with {[list(o) for o in NEAREST]}: agglomeration reads them")
        return self


class Lora(Strict):
    """Low-rank adapters (Hu et al. 2022): a frozen W becomes W + alpha / rank * B A, of which A and B are trained."""

    rank: PositiveInt = 8
    """Rank of the adapters; higher ones have more parameters."""
    alpha: Annotated[float, Field(gt=0)] = 8.0
    """Scale of the adapters' contribution, divided by the rank."""


class Predict(Strict):
    """Block-wise prediction from overlapping crops."""

    crop: Shape | None = None
    """Extent of the raw; null: the training crop, which is what normalisation has seen."""
    stride: Shape | None = None
    """Step between the outputs of neighbouring crops; null: half their extent."""
    padding: Padding = (4, 15, 15)
    """Reflected voxels beyond the volume's faces that are predicted too; valid convolutions read further."""
    sigma: Annotated[float, Field(gt=0)] = 0.2
    """Width of the Gaussian blending weight, in half crops."""
    flips: bool = False
    """Average over the eight flips of each crop."""
    batch_size: PositiveInt = 1
    """Crops that go through the network together."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Number format of the computation: 32 bits, or mixed with bfloat16 or float16 on a GPU."""
