"""ELU by table: torch's own bits, in every layout."""

import copy

import pytest
import torch
from torch import nn

from tokenunify import config as c
from tokenunify.learning import networks
from tokenunify.learning.elu_table import TableELU, use_tables


def bits(values):
    return values.contiguous().view(torch.int16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_every_number_of_16_bits_has_the_bits_that_torch_computes(dtype, alpha):
    every = torch.arange(1 << 16).to(torch.uint16).view(dtype).reshape(1, 2, 8, 64, 64)
    elu = nn.ELU(alpha)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        given = every.to(memory_format=layout, copy=True)
        result = TableELU(elu)(given)
        assert torch.equal(bits(result), bits(elu(every)))
        assert result.data_ptr() == given.data_ptr()  # in place


@pytest.mark.parametrize("values", [torch.randn(1, 3, 4, 5, 6), torch.randn(1, 3, 4, 5, 12).bfloat16()[..., ::2]])
def test_other_numbers_and_layouts_are_computed(values):
    expected = nn.functional.elu(values)
    assert torch.equal(TableELU(nn.ELU())(values), expected)


def test_a_network_predicts_the_same_bits_with_tables():
    network = networks.build(c.Superhuman(filters=(3, 5, 6)).model_dump(mode="json")).eval()
    network.to(memory_format=network.MEMORY_FORMAT)
    quick = copy.deepcopy(network)
    use_tables(quick)
    assert not any(isinstance(module, nn.ELU) for module in quick.modules())
    assert list(quick.state_dict()) == list(network.state_dict())
    raw = torch.rand(1, 1, 5, 20, 28)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick.logits(raw), network.logits(raw))
