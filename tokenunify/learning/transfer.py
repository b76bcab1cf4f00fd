"""The name that `learning.initial_weights` had before; scripts of earlier versions import it from here."""

from tokenunify.learning.initial_weights import load, read_published

__all__ = ["load", "read_published"]
