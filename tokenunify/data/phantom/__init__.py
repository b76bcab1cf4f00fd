"""The built-in volume: generated neuropil with its true segmentation."""
