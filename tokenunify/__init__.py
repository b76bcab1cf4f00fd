"""tokenunify: from electron-microscopy volumes to scored neuron segmentations."""

__version__ = "0.1.0"
