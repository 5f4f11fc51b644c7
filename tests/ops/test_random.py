"""Random numbers and dropout: published vectors, distributions, and every backend and level against the reference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as TF
from cases import RANDOM_SIZES
from parity import DTYPES, FLOORS, opcheck, relative_error
from scipy import stats
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
import aigc_fast.nn as AN
from aigc_fast.ops.random import philox, reference
from aigc_fast.ops.random.operators import DROPOUT, NORMAL, UNIFORM, draw_key

# counter, key and words: Random123's tests/kat_vectors, philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
FLOATS = ["fp32", "bf16", "fp16"]


def from_hex(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def make_key(seed: int, offset: int = 0) -> Tensor:
    return torch.tensor(np.array([seed, offset], dtype=np.uint64).view(np.int64))


@pytest.fixture(params=FLOATS)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, words):
    found = philox.philox4x32([torch.tensor(c) for c in from_hex(counter)], [torch.tensor(k) for k in from_hex(key)])
    assert [int(word) for word in found] == from_hex(words)


def test_kernel_gives_the_published_words(isa):
    """Uniform numbers show the upper 24 bits of a block whose counter has no upper half."""
    seed = 0x299F31D0_A4093822
    for offset in (0, 0x85A308D3_243F6A88):
        counter = [torch.tensor(offset & 0xFFFFFFFF), torch.tensor(offset >> 32), torch.tensor(0), torch.tensor(0)]
        words = philox.philox4x32(counter, [torch.tensor(0xA4093822), torch.tensor(0x299F31D0)])
        expected = [int(word) >> 8 for word in words]
        found = UNIFORM.run([4], make_key(seed, offset), torch.float32) * 2**24
        assert found.tolist() == expected
    zero = UNIFORM.run([4], make_key(0), torch.float32) * 2**24
    assert [int(x) for x in zero] == [word >> 8 for word in from_hex(KNOWN_ANSWERS[0][2])]


@pytest.mark.parametrize("offset", [0, 5, 2**32 - 3, 2**63 - 2, 2**64 - 2])
def test_counters_carry_and_wrap(isa, offset):
    blocks = torch.cat([philox.words(4, make_key(3, (offset + i) % 2**64)) for i in range(40)])
    found = UNIFORM.run([160], make_key(3, offset), torch.float32)
    assert torch.equal(found, (blocks.flatten() >> 8).float() * 2.0**-24)


@pytest.mark.parametrize("n", RANDOM_SIZES)
def test_kernels_give_the_reference_numbers(isa, dtype, n):
    key = make_key(11, 2**32 - 2)
    with aigc_fast.backend("cpu"):
        uniform, normal = UNIFORM([n], key, dtype), NORMAL([n], key, dtype)
        input = torch.randn(n).to(dtype)
        dropped = DROPOUT(input, key, 0.3)
    assert torch.equal(uniform, reference.uniform([n], key, dtype))
    assert torch.equal(dropped, reference.dropout(input, key, 0.3))
    exact = reference.normal([n], key, torch.float64)
    assert relative_error(normal, exact) <= FLOORS[dtype]
    if dtype == torch.float32:
        allowed = (reference.normal([n], key, dtype) - exact).abs().max()
        assert (normal - exact).abs().max() <= 2 * allowed + 2e-7


def test_dropout_in_float64_gives_the_reference_numbers(isa):
    input, key = torch.randn(1023, dtype=torch.float64), make_key(5)
    with aigc_fast.backend("cpu"):
        assert torch.equal(DROPOUT(input, key, 0.7), reference.dropout(input, key, 0.7))


def test_float64_uniform_refines_float32():
    key = make_key(2)
    fine, coarse = (UNIFORM([1023], key, dtype) for dtype in (torch.float64, torch.float32))
    assert ((fine - coarse) >= 0).all()
    assert ((fine - coarse) < 2.0**-24).all()
    assert (fine * 2**32 != (fine * 2**32).floor()).float().mean() > 0.99


@pytest.mark.parametrize("n", [100, 5000, 300_001])
def test_threads_do_not_change_the_numbers(n):
    key, input = make_key(1), torch.randn(n)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append((NORMAL.run([n], key, torch.float32), DROPOUT.run(input, key, 0.5)))
    finally:
        torch.set_num_threads(before)
    for normal, dropped in found[1:]:
        assert torch.equal(normal, found[0][0])
        assert torch.equal(dropped, found[0][1])


def test_an_element_depends_on_its_index_alone(backend):
    key = make_key(9)
    long = NORMAL([4099], key, torch.float32)
    for n in (1, 6, 1025):
        assert torch.equal(NORMAL([n], key, torch.float32), long[:n])
    assert torch.equal(NORMAL([4091], make_key(9, 2), torch.float32), long[8:])


def test_normals_are_standard_normal():
    sample = AF.randn(1_000_000).double().numpy()
    assert stats.kstest(sample, "norm").pvalue > 1e-3
    n = len(sample)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((sample**power).mean() - mean) < 4 * np.sqrt(variance / n)
    for lag in (1, 2, 3, 4, 1024):
        assert abs((sample[:-lag] * sample[lag:]).mean()) < 4 / np.sqrt(n - lag)
    beyond = (np.abs(sample) > 4).sum()
    assert stats.binomtest(int(beyond), n, 2 * stats.norm.sf(4)).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_uniforms_are_not_rounded_to_1(dtype, backend):
    sample = AF.rand(100_000, dtype=dtype)
    assert sample.max() == 1 - torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("name", ["fp32", "fp64"])
def test_uniforms_are_uniform(name):
    sample = AF.rand(1_000_000, dtype=DTYPES[name]).numpy()
    assert sample.min() >= 0
    assert sample.max() < 1
    assert stats.kstest(sample, "uniform").pvalue > 1e-3
    counts = np.bincount((sample * 256).astype(int), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_keys_give_independent_numbers():
    first, second = AF.randn(100_000), AF.randn(100_000)
    assert abs((first * second).mean()) < 4 / np.sqrt(100_000)
    assert stats.ks_2samp(first.numpy(), second.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("make", [AF.randn, AF.rand])
def test_seeds_repeat_and_generators_advance(make):
    torch.manual_seed(5)
    first, second = make(7, 3), make((7, 3))
    torch.manual_seed(5)
    assert torch.equal(make([7, 3]), first)
    assert not torch.equal(first, second)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(make(7, 3, generator=generator), first)
    assert torch.equal(make(7, 3, generator=generator), second)


@pytest.mark.parametrize("make", [AF.randn, AF.rand])
def test_the_short_way_of_a_plain_call_gives_the_op_s_numbers(make):
    """Without arguments beyond the size a call leaves the op out; in a thread of its own and in inference mode, too."""

    def draw() -> tuple[Tensor, Tensor]:
        return make(5), make((2, 3))

    def draw_in_inference_mode() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return draw()

    def draw_after_inference_mode() -> tuple[Tensor, Tensor]:
        draw_in_inference_mode()
        torch.manual_seed(5)
        return draw()

    torch.manual_seed(5)
    with aigc_fast.backend("reference"):
        expected = draw()
    for call in (draw, draw_in_inference_mode, draw_after_inference_mode):
        torch.manual_seed(5)
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(call).result()
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_shapes_and_types_are_those_of_torch():
    for size in ((), (0,), (3, 0, 2), (2, 3)):
        assert AF.randn(size).shape == AF.randn(*size).shape == torch.randn(size).shape
        assert AF.rand(size).shape == torch.rand(size).shape
    assert AF.randn(3).dtype == torch.get_default_dtype()
    assert AF.randn(3, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert AF.rand(torch.Size([4]), device="cpu").shape == (4,)
    assert AF.randn(3, device="meta").device.type == "meta"


@pytest.mark.parametrize("make", [AF.randn, AF.rand])
def test_bad_sizes_and_types_name_the_argument(make):
    with pytest.raises(RuntimeError, match="size=\\[2, -1\\]"):
        make(2, -1)
    with pytest.raises(RuntimeError, match=r"dtype=torch\.int64"):
        make(2, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"dtype is str: expected a torch\.dtype"):
        make(2, dtype="float32")
    with pytest.raises(TypeError, match=r"generator is int: expected a torch\.Generator"):
        make(2, generator=3)
    for size in ((2.5,), ("a",), (2, [3]), ((2, 3), 4), (None,), (True,), (1, 2.0)):
        with pytest.raises(TypeError):
            getattr(torch, make.__name__)(*size)
        with pytest.raises(TypeError, match=r"size is \w+: expected an integer"):
            make(*size)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999])
def test_dropout_keeps_the_right_share_and_scales_it(backend, dtype, p):
    input = torch.full((40_000,), 1.5, dtype=dtype)
    output = AF.dropout(input, p)
    kept = int((output != 0).sum())
    assert stats.binomtest(kept, input.numel(), 1 - p).pvalue > 1e-3
    expected = torch.full((kept,), 1.5 / (1 - p), dtype=torch.float64)
    assert relative_error(output[output != 0], expected) <= FLOORS[dtype]


def test_dropout_backward_drops_the_same_elements(backend, dtype):
    input = torch.ones(5, 1023, dtype=dtype, requires_grad=True)
    output = AF.dropout(input, 0.3)
    upstream = torch.randn_like(output)
    (grad,) = torch.autograd.grad(output, input, upstream)
    assert torch.equal(grad != 0, (output != 0) & (upstream != 0))
    assert relative_error(grad, output.double() * upstream.double()) <= FLOORS[dtype]


def test_dropout_is_differentiable_twice():
    input = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    key = make_key(3)
    call = lambda x: DROPOUT(x, key, 0.4).square()  # noqa: E731
    assert torch.autograd.gradcheck(call, input)
    assert torch.autograd.gradgradcheck(call, input)


def test_dropout_edges_are_those_of_torch():
    input = torch.tensor([1.0, -2.0, float("inf"), float("nan"), -0.0])
    assert AF.dropout(input, 0.0) is input
    assert AF.dropout(input, 0.5, training=False) is input
    torch.testing.assert_close(AF.dropout(input, 1.0), TF.dropout(input, 1.0), equal_nan=True)
    empty = torch.empty(0, 3)
    assert AF.dropout(empty, 0.5).shape == (0, 3)


def test_dropout_spreads_nan_and_infinity_as_torch():
    input = torch.tensor([float("inf"), float("nan"), -float("inf")]).repeat(100)
    output = AF.dropout(input, 0.5)
    assert set(output[0::3].nan_to_num(7.0, 8.0, 9.0).tolist()) == {7.0, 8.0}
    assert output[1::3].isnan().all()
    assert set(output[2::3].nan_to_num(7.0, 8.0, 9.0).tolist()) == {7.0, 9.0}


def test_dropout_in_place():
    input = torch.ones(100)
    assert AF.dropout(input, 0.5, inplace=True) is input
    assert set(input.tolist()) == {0.0, 2.0}
    leaf = torch.ones(100, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        AF.dropout(leaf, 0.5, inplace=True)
    inner = leaf * 1
    AF.dropout(inner, 0.5, inplace=True).sum().backward()
    assert torch.equal(leaf.grad, inner.detach())


def layouts(tensor: Tensor) -> dict[str, Tensor]:
    return {
        "channels_last": tensor.contiguous(memory_format=torch.channels_last),
        "transposed": tensor.transpose(0, 3).contiguous().transpose(0, 3),
        "sliced": torch.stack([tensor, tensor], dim=-1)[..., 1],
        "shifted": torch.cat([torch.zeros(1), tensor.flatten()])[1:].view(tensor.shape),
        "expanded": tensor[:1].expand(tensor.shape),
    }


@pytest.mark.parametrize("name", ["channels_last", "transposed", "sliced", "shifted", "expanded"])
def test_dropout_does_not_depend_on_the_layout(backend, name):
    input = layouts(torch.randn(3, 4, 5, 7))[name]
    key = make_key(8)
    output = DROPOUT(input, key, 0.4)
    assert torch.equal(output, reference.dropout(input.contiguous(), key, 0.4))
    if backend != "reference":
        assert output.stride() == torch.empty_like(input).stride()


def test_dropout_takes_complex_input():
    input = torch.randn(200, dtype=torch.complex64)
    output = AF.dropout(input, 0.5)
    assert torch.equal(output[output != 0], (2 * input)[output != 0])
    assert 50 < int((output != 0).sum()) < 150


def test_dropout_names_bad_arguments():
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"p={p}: expected a probability between 0 and 1"):
            AF.dropout(torch.ones(3), p)
    for p in ("a", None, [0.5]):
        with pytest.raises(TypeError, match=r"p is \w+: expected a number"):
            AF.dropout(torch.ones(3), p)
    for training in (False, True):
        with pytest.raises(TypeError, match="input is list: expected a Tensor"):
            AF.dropout([1.0], training=training)
    with pytest.raises(TypeError, match=r"generator is int: expected a torch\.Generator"):
        AF.dropout(torch.ones(3), generator=5)
    with pytest.raises(RuntimeError, match=r"input has dtype torch\.int64"):
        AF.dropout(torch.ones(3, dtype=torch.int64), 0.5)
    # PyTorch drops all of any type.
    assert torch.equal(AF.dropout(torch.ones(3, dtype=torch.int64), 1.0), torch.zeros(3, dtype=torch.int64))


def test_dropout_module_is_a_drop_in():
    module = AN.Dropout(0.25, inplace=False)
    assert isinstance(module, torch.nn.Dropout)
    assert repr(module) == repr(torch.nn.Dropout(0.25))
    assert module.state_dict() == {}
    input = torch.ones(1000)
    assert 600 < int((module(input) != 0).sum()) < 900
    assert module.eval()(input) is input
    with pytest.raises(ValueError, match="between 0 and 1"):
        AN.Dropout(1.5)


def test_compiled_calls_draw_the_same_keys_as_eager_ones():
    def call(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return AF.dropout(input, 0.5), AF.dropout(input, 0.5), AF.randn(input.shape[0])

    compiled = torch.compile(call, fullgraph=True, dynamic=True)
    for n in (64, 65):
        input = torch.ones(n)
        torch.manual_seed(3)
        first, second = compiled(input), compiled(input)
        torch.manual_seed(3)
        for found in (first, second):
            for ours, expected in zip(found, call(input), strict=True):
                assert torch.equal(ours, expected)
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first[0], second[0])


def test_compiled_backward_drops_the_same_elements():
    compiled = torch.compile(lambda input: AF.dropout(AF.dropout(input, 0.3), 0.3), fullgraph=True)
    input = torch.ones(64, requires_grad=True)
    output = compiled(input)
    output.sum().backward()
    assert torch.equal(input.grad, output.detach())


def test_exported_programs_draw_anew():
    program = torch.export.export(AN.Dropout(0.5), (torch.ones(64),)).module()
    assert not torch.equal(program(torch.ones(64)), program(torch.ones(64)))


def test_vmap_obeys_its_randomness():
    input = torch.ones(3, 64)
    call = lambda row: AF.dropout(row, 0.5)  # noqa: E731
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(call)(input)
    same = torch.vmap(call, randomness="same")(input)
    different = torch.vmap(call, randomness="different")(input)
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])
    for rows in (same, different):
        assert set(rows.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("uniform", ([3, 5], make_key(1), torch.float64)),
        ("dropout", (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), make_key(1), 0.3)),
    ],
)
def test_ops_are_registered_as_torch_expects(name, arguments):
    opcheck(getattr(torch.ops.aigc_fast, name).default, arguments)


def test_a_default_device_does_not_reach_the_kernels():
    input = torch.ones(8)
    with torch.device("meta"):
        assert AF.dropout(input, 0.5).device.type == "cpu"
        assert AF.randn(3).device.type == "meta"


def test_key_comes_from_the_generator():
    generator = torch.Generator().manual_seed(1)
    key = draw_key(torch.empty(0), generator)
    assert key.dtype == torch.int64
    assert key.shape == (2,)
    assert (key >= 0).all()
    assert not torch.equal(key, draw_key(torch.empty(0), generator))
