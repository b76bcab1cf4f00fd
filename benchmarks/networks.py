"""Forward pass and training step of the networks on the CPU, and what their convolutions alone take in the same run."""

import timeit

import torch
from torch.profiler import ProfilerActivity, profile

from tokenunify.learning import networks

CROPS = {"emmamba-tiny-released": (16, 160, 160), "emmamba-tiny": (16, 160, 160), "superhuman": (18, 160, 160)}
OPTIONS = {"emmamba-tiny": {"strides": [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]], "slices": "sections"}}
"""Options beside the name: no section is skipped before the third stage."""


def forward(network: torch.nn.Module, raw: torch.Tensor) -> None:
    """Affinities without gradients."""
    with torch.no_grad():
        network(raw)


def step(network: torch.nn.Module, raw: torch.Tensor) -> None:
    """Affinities and the gradients of all parameters."""
    network.zero_grad()
    network(raw).square().mean().backward()


def shares(function, *arguments) -> tuple[float, float, float]:
    """Seconds in convolutions, in scans and in all else."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function(*arguments)
    convolutions, scans, rest = 0.0, 0.0, 0.0
    for event in profiler.key_averages():
        if "conv" in event.key.lower():
            convolutions += event.self_cpu_time_total
        elif "Scan" in event.key:
            scans += event.self_cpu_time_total
        else:
            rest += event.self_cpu_time_total
    return convolutions / 1e6, scans / 1e6, rest / 1e6


def main() -> None:
    """Print the table."""
    print(f"{torch.get_num_threads()} threads, one crop")
    for name, crop in CROPS.items():
        torch.manual_seed(0)
        network = networks.build({"name": name, **OPTIONS.get(name, {})})
        raw = torch.rand(1, 1, *crop)
        for function in (forward, step):
            function(network, raw)  # compiles the scan's kernels
            seconds = min(timeit.repeat(lambda f=function, n=network, r=raw: f(n, r), number=1, repeat=3))
            convolutions, scans, rest = shares(function, network, raw)
            total = convolutions + scans + rest
            print(
                f"  {name} {'x'.join(map(str, crop))} {function.__name__}: {seconds:.2f} s; profiled {total:.2f} s: "
                f"convolutions {convolutions:.2f} s ({convolutions / total:.0%}), scans {scans:.2f} s "
                f"({scans / total:.0%}), rest {rest:.2f} s ({rest / total:.0%})"
            )


if __name__ == "__main__":
    main()
