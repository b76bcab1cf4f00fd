"""The selective scan: our compiled kernels next to the plain loop over tokens, their memory, and the time per token."""

import re
import subprocess
import sys
import timeit
from pathlib import Path

import torch

from tokenunify.learning.scan import selective_scan

CHANNELS, STATES, LENGTH = 64, 16, 51_200
LENGTHS = (6_400, 12_800, 25_600, 51_200, 102_400, 204_800, 409_600)


def inputs(length: int) -> dict[str, torch.Tensor]:
    """What a Mamba layer of the smallest network passes to the scan, in all that takes a gradient."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {name: normal(1, CHANNELS, length) for name in ("u", "delta", "z")}
    tensors |= {name: normal(1, STATES, length) for name in "BC"}
    tensors |= {"A": -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1), "D": torch.ones(CHANNELS)}
    tensors["delta_bias"] = normal(CHANNELS) - 3
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def forward(tensors: dict[str, torch.Tensor], backend: str) -> torch.Tensor:
    """The scan without gradients."""
    with torch.no_grad():
        return selective_scan(**tensors, delta_softplus=True, backend=backend)


def step(tensors: dict[str, torch.Tensor], backend: str) -> list[torch.Tensor]:
    """The gradients of a weighted sum of the output."""
    y = selective_scan(**tensors, delta_softplus=True, backend=backend)
    return list(torch.autograd.grad(y, list(tensors.values()), tensors["z"].detach()))


def seconds(function, *arguments, repeat: int) -> float:
    """The least of some times."""
    return min(timeit.repeat(lambda: function(*arguments), number=1, repeat=repeat))


def compare() -> None:
    """Print times and gradients next to the plain loop's."""
    tensors = inputs(LENGTH)
    print(f"scan of {LENGTH} tokens, {CHANNELS} channels, {STATES} states, {torch.get_num_threads()} threads")
    for function in (forward, step):
        function(inputs(100), "cpu")  # compiles the kernels
        fast, slow = seconds(function, tensors, "cpu", repeat=5), seconds(function, tensors, "loop", repeat=1)
        name = "forward" if function is forward else "forward and backward"
        print(f"  {name}: loop {slow:.2f} s, ours {fast:.3f} s: {slow / fast:.0f} x its speed")
    pairs = zip(step(tensors, "cpu"), step(tensors, "loop"), strict=True)
    errors = ((ours - theirs).abs().max() / theirs.abs().max() for ours, theirs in pairs)
    print(f"  largest difference of a gradient: {max(errors):.1e} of its largest value")


def memory() -> None:
    """Print the peak memory of a forward and backward pass; run in a process of its own."""
    step(inputs(100), "cpu")
    tensors = inputs(LENGTH)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status("VmHWM")
    step(tensors, "cpu")
    size = tensors["u"].nbytes
    print(f"  peak memory beyond the inputs: {(status('VmHWM') - before) / size:.1f} x the size of u ({size >> 20} MB)")


def status(key: str) -> int:
    """Bytes of a line of this process's status."""
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def linearity() -> None:
    """Print the time per token for rising numbers of tokens."""
    print("  tokens   forward ns/token   forward and backward ns/token")
    for length in LENGTHS:
        tensors = inputs(length)
        repeat = 4 + LENGTHS[-1] // length
        times = [1e9 * seconds(function, tensors, "cpu", repeat=repeat) / length for function in (forward, step)]
        print(f"  {length:6d}   {times[0]:16.0f}   {times[1]:29.0f}")


def main() -> None:
    """Print all."""
    if sys.argv[1:] == ["memory"]:
        memory()
        return
    compare()
    subprocess.run([sys.executable, __file__, "memory"], check=True)
    linearity()


if __name__ == "__main__":
    main()
