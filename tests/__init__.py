"""Tests; a regular package, as wkw installs one of this name that would come first."""
