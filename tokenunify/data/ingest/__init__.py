"""Write source files as OME-Zarr volumes."""
