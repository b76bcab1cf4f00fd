"""Networks and their training: the only place that imports torch."""

from tokenunify.learning.environment import prepare_for_torch

prepare_for_torch()  # here, because this package is loaded before any module of it imports torch
