"""Data: find, verify and read source files, generate the phantom, write OME-Zarr volumes."""
