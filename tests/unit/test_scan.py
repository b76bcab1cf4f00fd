"""The selective scan: published arrays, the plain recurrence, and independence of threads and memory layout."""

import functools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from tokenunify.errors import InputError
from tokenunify.learning import scan
from tokenunify.learning.scan import selective_scan
from tokenunify.learning.scan_cpu import CHUNK, LANES

TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


@pytest.fixture(autouse=True)
def forget_choices(monkeypatch):
    monkeypatch.delenv(scan.VARIABLE, raising=False)
    yield
    scan._choose.cache_clear()


def inputs(b=2, d=LANES + 3, length=2 * CHUNK + 5, n=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator, dtype=dtype)
    values = [normal(b, d, length), normal(b, d, length), -normal(d, n).exp()]
    values += [normal(b, n, length), normal(b, n, length), normal(d), normal(b, d, length), normal(d)]
    return dict(zip(TENSORS, values, strict=True))


def gradients(tensors, weight, **options):
    tensors = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    y, last = selective_scan(**tensors, return_last_state=True, **options)
    assert not last.requires_grad
    grads = torch.autograd.grad((y * weight).sum(), list(tensors.values()))
    return {"y": y.detach(), "last_state": last, **dict(zip(tensors, grads, strict=True))}


def assert_near(found, expected, tolerance):
    for name, tensor in found.items():
        scale = expected[name].abs().max()
        assert tensor.shape == expected[name].shape, name
        assert (tensor - expected[name]).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("name", ["a", "nozd", "constBC"])
@pytest.mark.parametrize("backend", ["loop", "cpu"])
@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), [(torch.float32, "", 1e-5), (torch.float64, "_f64", 1e-10)])
def test_published_scans(golden, name, backend, dtype, suffix, tolerance):
    arrays = golden(f"scan_{name}.npz")
    softplus = json.loads(str(arrays["meta_json"]))["delta_softplus"]
    tensors = {key: torch.from_numpy(arrays[key]).to(dtype) for key in TENSORS if key in arrays}
    weight = torch.from_numpy(arrays["loss_weight"]).to(dtype)
    found = gradients(tensors, weight, delta_softplus=softplus, backend=backend)
    keys = {key: f"grad_{key}" if key in TENSORS else key for key in found}
    assert_near(found, {key: torch.from_numpy(arrays[keys[key] + suffix]) for key in found}, tolerance)


def test_loop_is_the_recurrence_written_out():
    tensors = inputs(b=1, d=2, length=4, n=3)
    u, delta, A, B, C, D, z, bias = (tensors[name].numpy() for name in TENSORS)
    expected = np.zeros((1, 2, 4))
    for channel in range(2):
        h = [0.0] * 3
        for t in range(4):
            step = math.log1p(math.exp(delta[0, channel, t] + bias[channel]))
            for n in range(3):
                h[n] = math.exp(step * A[channel, n]) * h[n] + step * B[0, n, t] * u[0, channel, t]
            y = sum(h[n] * C[0, n, t] for n in range(3)) + D[channel] * u[0, channel, t]
            expected[0, channel, t] = y * z[0, channel, t] / (1 + math.exp(-z[0, channel, t]))
    found = selective_scan(**tensors, delta_softplus=True, backend="loop")
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
@pytest.mark.parametrize("d", [1, LANES, LANES + 3])
def test_compiled_scan_equals_the_loop(length, d):
    tensors = inputs(d=d, length=length)
    weight = torch.linspace(-1, 2, 2 * d * length, dtype=torch.float64).view(2, d, length)
    expected = gradients(tensors, weight, delta_softplus=True, backend="loop")
    assert_near(gradients(tensors, weight, delta_softplus=True, backend="cpu"), expected, 1e-10)


@pytest.mark.parametrize("constant", ["B", "C", "BC"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_matrices_and_plain_steps(constant, dtype):
    tensors = inputs(dtype=dtype)
    tensors |= {name: torch.linspace(-1, 1, (LANES + 3) * 3, dtype=dtype).view(-1, 3) for name in constant}
    tensors["delta"], tensors["delta_bias"] = tensors["delta"].abs(), tensors["delta_bias"].abs()
    weight = tensors["z"].cos()
    expected = gradients(tensors, weight, backend="loop")
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert_near(gradients(tensors, weight, backend="cpu"), expected, tolerance)


def test_long_float32_scan_is_as_near_to_the_exact_one_as_the_loop():
    tensors = inputs(b=1, d=3, length=3000, dtype=torch.float32)
    weight = tensors["u"].cos()
    exact = gradients({k: v.double() for k, v in tensors.items()}, weight.double(), delta_softplus=True, backend="loop")
    assert_near(gradients(tensors, weight, delta_softplus=True, backend="cpu"), exact, 2e-6)


def test_growing_and_extreme_values():
    tensors = inputs(b=1, d=4, length=9, dtype=torch.float32)
    tensors["A"] = torch.tensor([0.3, 0.0, -80.0]).expand(4, 3)
    tensors["delta"] = torch.linspace(-200, 30, 36).view(1, 4, 9)
    found = selective_scan(**tensors, delta_softplus=True, backend="cpu")
    expected = selective_scan(**{k: v.double() for k, v in tensors.items()}, delta_softplus=True, backend="loop")
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_same_bits_for_any_number_of_threads():
    tensors, weight = inputs(d=3 * LANES + 1, dtype=torch.float32), torch.ones(2, 3 * LANES + 1, 2 * CHUNK + 5)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(gradients(tensors, weight, delta_softplus=True, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


def test_memory_layout_is_free_and_kept():
    tensors = inputs()
    expected = selective_scan(**tensors, backend="cpu")
    for name in ("u", "delta", "B", "C", "z"):
        tensors[name] = tensors[name].transpose(1, 2).contiguous().transpose(1, 2)
    tensors["B"] = tensors["B"].repeat_interleave(2, dim=2)[..., ::2]
    found = selective_scan(**tensors, backend="cpu")
    assert torch.equal(found, expected)
    assert found.stride() == tensors["u"].stride()


def test_half_precision_is_computed_in_single():
    tensors = inputs(dtype=torch.float32)
    halves = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    found = selective_scan(**halves, delta_softplus=True)
    expected = selective_scan(**{name: x.float() for name, x in halves.items()}, delta_softplus=True)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


def test_backend_is_chosen_once_and_logged(caplog, monkeypatch):
    tensors = inputs(length=3)
    with caplog.at_level("INFO"):
        selective_scan(**tensors)
        selective_scan(**tensors)
        monkeypatch.setenv(scan.VARIABLE, "loop")
        selective_scan(**tensors)
    assert [r.message for r in caplog.records] == [
        "selective scan of cpu tensors: backend cpu",
        "selective scan of cpu tensors: backend loop",
    ]


def test_mamba_ssm_is_imported_by_its_backend_alone():
    code = "import sys, tokenunify.learning.scan; sys.exit('mamba_ssm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_kernel_equals_the_loop():
    pytest.importorskip("mamba_ssm")
    tensors = {name: tensor.cuda() for name, tensor in inputs(dtype=torch.float32).items()}
    weight = torch.ones_like(tensors["u"])
    expected = gradients(tensors, weight, delta_softplus=True, backend="loop")
    assert_near(gradients(tensors, weight, delta_softplus=True, backend="cuda"), expected, 1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "fast"}, "backend: expected auto, loop, cpu or cuda, found 'fast'"),
        ({"backend": "cuda"}, "backend: cuda needs tensors on that device, found them on cpu"),
        ({"u": torch.zeros(3, 4)}, r"expected u \(b, d, l\)"),
        ({"delta": torch.zeros(2, 4, 5)}, r"delta must be \(2, 35, 7\).*got \(2, 4, 5\)"),
        ({"B": torch.zeros(2, 7, 3)}, r"B must be \(2, 3, 7\) or \(35, 3\).*got \(2, 7, 3\)"),
        ({"delta_bias": torch.zeros(4)}, r"delta_bias must be \(35,\)"),
    ],
)
def test_bad_input_is_explained(change, words):
    with pytest.raises(InputError, match=words):
        selective_scan(**{**inputs(length=7), **change})


@pytest.mark.parametrize("backend", ["loop", "cpu", "auto"])
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64])
def test_what_a_cast_would_change_is_refused(name, backend, dtype):
    tensors = inputs(length=7)
    with pytest.raises(InputError, match=f"{name} must hold real floating-point numbers, got {dtype}"):
        selective_scan(**tensors | {name: tensors[name].to(dtype)}, backend=backend)


def test_unknown_backend_in_the_environment_is_explained(monkeypatch):
    monkeypatch.setenv(scan.VARIABLE, "gpu")
    with pytest.raises(InputError, match="TOKENUNIFY_SCAN: expected auto, loop, cpu or cuda, found 'gpu'"):
        selective_scan(**inputs(length=3))
