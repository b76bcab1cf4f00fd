"""The table of networks: its numbers against counts by hand, and its rows."""

import re
from pathlib import Path

import pytest
import torch

from tokenunify import cli
from tokenunify.learning import networks, summary


@pytest.fixture(scope="module")
def printed():
    """The table of all networks by name."""
    rows = [summary.row(*entry) for entry in summary.named()]
    return {row[0]: dict(zip(summary.HEADER, row, strict=True)) for row in rows}


def test_every_network_has_a_row(printed):
    assert set(printed) == {*networks.BUILDERS, *networks.RELEASED}
    assert printed["mala"]["output"] == "25x56x56"
    assert printed["mala"]["legal crops"] == "[29, 214, 214] plus multiples of [1, 27, 27]"
    assert printed["superhuman"]["parameters"] == printed["superhuman"]["used"] == "1,477,659"
    assert (printed["unetr-released"]["parameters"], printed["unetr-released"]["used"]) == ("129,071,547", "60,559,827")


def test_cost_is_that_of_a_count_by_hand():
    """A first convolution, two residual blocks, one pooling, up-sampling by interpolation, and the head."""
    z, y, x, f, g = 3, 8, 12, 4, 6
    network = networks.build({"name": "superhuman", "filters": [f, g], "merge": "add"})
    fine, coarse = z * y * x, z * y * x // 4

    def block(voxels, c_in, c_out):
        return voxels * (9 * c_in * c_out + 2 * 27 * c_out**2)

    products = fine * 25 * f + block(fine, f, f) + block(coarse, f, g) + coarse * g * f + block(fine, f, f)
    products += fine * 25 * f * f + fine * f * 3
    assert summary.measure(network, (z, y, x)).flops == 2 * products


@pytest.mark.parametrize("name", ["superhuman", "pea", "resunet"])
def test_a_run_without_memory_measures_as_a_real_one(name):
    costs = []
    for device in ("meta", "cpu"):
        with torch.device(device):
            network = networks.build({"name": name})
        costs.append(summary.measure(network, (8, 16, 32)))
    assert costs[0] == costs[1]


def test_activations_are_what_the_gradient_needs():
    """A linear layer keeps its input, a ReLU its output; parameters do not count."""

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(7, 5)

        def forward(self, raw):
            return torch.relu(self.linear(raw * 2))

    cost = summary.measure(Tiny(), (2, 3, 7))
    assert cost.activation_bytes == 4 * (2 * 3 * 7 + 2 * 3 * 5)
    assert cost.flops == 2 * 2 * 3 * 7 * 5


def test_networks_of_a_configuration(root: Path, capsys: pytest.CaptureFixture):
    assert cli.main(["networks", "--configfile", str(root / "tests/config/tiny.yaml")]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["network", "parameters"]
    assert re.match(r"\S+ \(superhuman\) +[\d,]+ ", lines[0])
