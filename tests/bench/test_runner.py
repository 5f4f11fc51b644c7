"""The bench: its gate, its arithmetic and its files; nothing here asserts a time."""

import dataclasses

import pytest
import torch

from aigc_fast import functional
from aigc_fast.bench import decode, machine
from aigc_fast.bench.calls import (
    Answering,
    Attention,
    Case,
    Convolution,
    Decoded,
    Decoder,
    Linear,
    Norm,
    Recursion,
    Shape,
    WholeModel,
)
from aigc_fast.bench.cases import CASES, OPS
from aigc_fast.bench.contest import Contest, against_float64
from aigc_fast.bench.machine import Work
from aigc_fast.bench.parity import ParityError, check_parity
from aigc_fast.bench.peers import onnx_runtime
from aigc_fast.bench.runner import CONTESTS, Result, Row, measured, row_of, run
from aigc_fast.bench.tables import cells, tables
from aigc_fast.errors import UserError
from aigc_fast.functional import __all__ as functions
from aigc_fast.ops.examples import Example, examples, given
from aigc_fast.runtime import native
from aigc_fast.runtime.backends import current
from aigc_fast.runtime.timing import Timing, rounds_of

LIMITS = {"gemm_float32": 100e9, "gemm_bfloat16": 200e9, "read": 20e9, "copy": 10e9}
CASE = Case("attention", "a case", Attention(1, 1, 1, 2, 2, 2))


def small_cases():
    convolutions = [
        Convolution(2, 3, 5, (7,), 4, 2, 1, 1),
        Convolution(1, 4, 6, (5, 3), 3, 1, 1, groups=2, dilation=2),
        Convolution(1, 2, 3, (3, 4, 3), 2, 2),
        Convolution(2, 3, 4, (9, 8), 3, 2, 1, transposed=False),
    ]
    kinds = ("full", "causal", "padded", "window", "dropout")
    calls = {
        "conv_transpose": convolutions,
        "attention": [Attention(2, 4, 2 if kind == "full" else 4, 9, 9, 8, kind) for kind in kinds],
        "linear": [Linear(3, 7, 5, "gelu")],
        "norm": [
            Norm("group_norm", (2, 8, 5, 3), 2, "silu"),
            Norm("instance_norm", (2, 3, 5, 3), 1, "relu"),
            Norm("layer_norm", (3, 7)),
        ],
        "reparameterize": [Shape((8, 64))],
        "dropout": [Shape((64, 64), 0.3)],
    }
    for op, found in calls.items():
        for index, call in enumerate(found):
            for mode in ("forward", "training"):
                for dtype in ("float32", "bfloat16"):
                    yield Case(op, str(index), call, dtype, mode)
    for varying in (False, True):
        yield Case("recursion", "r", Recursion(2, 40, 3, varying), "float32", "training")
        yield Case("recursion", "r", Recursion(2, 40, 3, varying), "float64", "forward")
    for name, found in examples().items():
        for mode in ("forward", "training") if name not in ("rand", "randn") else ("forward",):
            # PyTorch's attention has no window.
            form = given(*[(2, 4, 9, 8)] * 3, is_causal=True) if name.startswith("scaled") else found.small
            yield Case("examples", name, Example(form, form), "float32", mode)
    for work in ("step", "greedy", "beams"):
        yield Case("seq2seq", work, Answering(work, 3, 9, 6, 64, 2, 50, 3), "float32", "training")
    works = [("dcgan", "step"), ("dcgan", "penalised step"), ("dcgan", "generate"), ("vae", "step")]
    for model, work in [*works, ("video", "step"), ("video-latent", "step")]:
        yield Case("models", work, WholeModel(model, work, 2), "float32", "training")


def decoded_cases():
    decoders = Decoder("gpt2", 36, 2, 3, 3, 72, 97, 64), Decoder("llama", 48, 2, 6, 2, 72, 97, 64)
    beams, drawn = (("num_beams", 3), ("no_repeat_ngram_size", 2)), (("do_sample", True), ("top_k", 9))
    for decoder in decoders:
        for dtype in ("float32", "bfloat16", "int8", "int4"):
            yield Case("decode", "greedy", Decoded(decoder, 5, 6), dtype)
        yield Case("decode", "beams", Decoded(decoder, 5, 6, options=beams), "float32")
    gpt2, _ = decoders
    yield Case("decode", "drawn", Decoded(gpt2, 5, 6, 3, options=drawn), "float32")
    yield Case("decode", "prompt", Decoded(gpt2, 40, 1), "float32")
    for extra in ("processor", "streamer"):
        yield Case("decode", extra, Decoded(gpt2, 5, 6, extra=extra), "float32")
        yield Case("decode_costs", extra, Decoded(gpt2, 5, 6, extra=extra, against="native loop"), "float32")
    yield Case("decode_costs", "rows", Decoded(gpt2, 5, 1, 4, against="one row"), "int8")
    yield Case("decode_costs", "bytes", Decoded(gpt2, 5, 6, against="int8"), "int4")
    yield Case("decode_costs", "loading", Decoded(gpt2, 2, 1, against="loading"), "int8")


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
@pytest.mark.parametrize("case", decoded_cases(), ids=lambda case: f"{case.label}, {case.call.decoder.family}")
def test_every_kind_of_decoding_passes_its_gate_and_runs(case, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setitem(decode.MOST_OFF, "int4", 0.5)
    torch.manual_seed(0)
    contest = CONTESTS[case.op](case)
    contest.gate()
    ways = contest.ours | contest.peers
    assert len(ways) > 1
    for call in ways.values():
        call()
    assert (contest.work is not None) == (case.name in ("greedy", "prompt"))
    if contest.peak is not None:
        assert case.name == "loading"
        assert contest.peak() > 0


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
def test_decoding_that_finds_other_ids_is_refused(monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    case = next(case for case in decoded_cases() if case.name == "beams")
    contest = CONTESTS[case.op](case)
    found = contest.ours["aigc_fast"]()[0]
    wrong = found.clone()
    wrong[0, -1] = (wrong[0, -1] + 1) % 90 + 3
    for name in contest.ours:
        monkeypatch.setitem(contest.ours, name, lambda: (wrong,))
    with pytest.raises(ParityError, match="differs from transformers'"):
        contest.gate()


def test_the_most_memory_is_told():
    found = dataclasses.replace(row(), peak=1.234)
    assert cells(found)[5] == "memory at most 1.23× what is kept"


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: f"{case.label}, {case.call.__class__.__name__}")
def test_every_kind_of_case_passes_its_gate_and_runs(case):
    torch.manual_seed(0)
    contest = CONTESTS[case.op](case)
    assert contest.gate()[0] < 0.1
    for call in (*contest.ours.values(), *contest.peers.values()):
        call()


def test_the_cases_are_told_apart_and_hold_what_nobody_tunes_for():
    assert len({case.label for case in CASES}) == len(CASES)
    assert set(OPS) == set(CONTESTS)
    odd = [case.call for case in CASES if case.op == "adversarial"]
    assert any(call.kernel >= 64 and call.stride >= 32 for call in odd)
    assert any(call.groups == call.inputs > 1 for call in odd)
    assert any(call.dilation > 1 for call in odd)
    assert any(call.kernel == 1 for call in odd)
    assert any(call.kernel == call.stride > 1 and not call.transposed for call in odd)
    assert any(call.inputs == 1 for call in odd)
    assert any(size % 2 for call in odd for size in call.spatial)
    assert {case.name for case in CASES if case.op == "examples"} == set(functions)
    assert {case.call.work for case in CASES if case.op == "models"} == {"step", "penalised step", "generate", "decode"}


@pytest.mark.parametrize(
    "call", [Convolution(2, 3, 5, (7,), 4, 2, 1, 1), Convolution(1, 4, 6, (5, 3), 3, 2, 1, transposed=False)]
)
def test_operations_are_those_of_the_products_whose_place_lies_inside(call):
    case = Case("conv_transpose", "c", call)
    contest = CONTESTS["conv_transpose"](case)
    (y,) = next(iter(contest.ours.values()))()
    assert list(y.shape[2:]) == [call.outer(size) for size in call.spatial]
    # Of ones through ones, without a bias, the sum counts the products.
    ones = torch.ones(call.batch, call.inputs, *call.spatial)
    name = f"conv{'_transpose' * call.transposed}{len(call.spatial)}d"
    pair = (call.inputs, call.outputs) if call.transposed else (call.outputs, call.inputs)
    weight = torch.ones(*pair, *[call.kernel] * len(call.spatial))
    more = {"output_padding": call.output_padding} if call.transposed else {}
    total = getattr(torch.nn.functional, name)(ones, weight, stride=call.stride, padding=call.padding, **more).sum()
    assert call.operations() == 2 * total


def contest_of(ours, work=None):
    exact = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    mine = {"aigc_fast": lambda: (ours,), "aigc_fast, channels_last": lambda: (exact.float(),)}
    stock = {"PyTorch": lambda: (exact.float(),), "PyTorch, channels_last": lambda: (exact.float(),)}
    return Contest(mine, stock, against_float64(mine, stock, lambda: (exact,), torch.float32), work)


@pytest.mark.parametrize(
    "wrong",
    [[1.0, 2.0, 3.001], [1.0, 2.0, float("nan")], [1.0, 2.0], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)],
    ids=["error", "nan", "shape", "dtype"],
)
def test_the_gate_refuses_a_wrong_result_before_anything_is_timed(wrong, monkeypatch):
    def never(*args):
        raise AssertionError("was timed")

    monkeypatch.setattr("aigc_fast.bench.runner.rounds_of", never)
    with pytest.raises(ParityError, match=r"attention a case, float32, forward: result 0: "):
        measured(CASE, contest_of(torch.as_tensor(wrong)), 0.01, LIMITS)


def test_calls_that_take_all_the_time_meet_several_rounds():
    rounds = rounds_of({"a": lambda: None, "b": lambda: None}, seconds=0.0, least=3)
    assert [len(found) for found in rounds.values()] == [3, 3]


def test_a_peer_that_computes_something_else_is_refused():
    exact = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    mine = {"aigc_fast": lambda: (exact.float(),)}
    for wrong in (exact.float() + 0.01, exact[:2].float(), exact.float() * float("nan")):
        gate = against_float64(mine, mine, lambda: (exact,), torch.float32, {"a peer": lambda wrong=wrong: (wrong,)})
        with pytest.raises(ParityError, match=r"^a peer: result 0: "):
            gate()


def test_an_example_stands_against_pytorchs_function_or_the_reference_and_a_wrong_one_is_refused(monkeypatch):
    cases = {case.name: case for case in small_cases() if case.op == "examples" and case.mode == "forward"}
    for name, peer in (("conv2d", "PyTorch"), ("randn", "PyTorch"), ("lfilter", "reference")):
        assert list(CONTESTS["examples"](cases[name]).peers) == [peer]
    for name in ("conv2d", "dropout"):
        right = getattr(functional, name)

        def wrong(*args, right=right, **options):
            return right(*args, **options) * (1 if current() == "reference" else 1.01)

        monkeypatch.setattr(functional, name, wrong)
        with pytest.raises(ParityError, match="result 0: error 1"):
            CONTESTS["examples"](cases[name]).gate()


def test_onnx_runtime_takes_part_in_forward_of_float32_and_reads_the_tensors_themselves():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    call = Convolution(2, 3, 5, (7, 6), 4, 2, 1, 1, dilation=2)
    asked = {("float32", "forward"): True, ("bfloat16", "forward"): False, ("float32", "training"): False}
    for (dtype, mode), takes_part in asked.items():
        assert ("ONNX Runtime" in CONTESTS["conv_transpose"](Case("conv_transpose", "c", call, dtype, mode)).peers) == (
            takes_part
        )
    x, weight = torch.randn(1, 2, 9), torch.randn(2, 3, 3)
    run = onnx_runtime("ConvTranspose", {"x": x}, {"weight": weight}, (1, 3, 11), opset=17)
    for _ in range(2):
        torch.testing.assert_close(run()[0], torch.nn.functional.conv_transpose1d(x, weight), rtol=1e-4, atol=1e-5)
        x.neg_()


def test_a_peer_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr("aigc_fast.bench.peers.optional", lambda name: None)
    monkeypatch.setattr("aigc_fast.bench.runner.probe", lambda: LIMITS)
    case = Case("adversarial", "c", Convolution(1, 3, 4, (9,), 3, transposed=False))
    (found,) = run([case], 0.01).rows
    assert found.absent == ("ONNX Runtime",)
    assert cells(found)[3].endswith("; without ONNX Runtime")


def test_the_gate_allows_twice_pytorchs_error_and_the_formats_rounding():
    exact = torch.full((4,), 1.0, dtype=torch.float64)
    stock = (exact + 1e-4).float()
    assert check_parity([(exact + 1.9e-4).float()], [stock], [exact], torch.float32)[0] == pytest.approx(
        1.9e-4, rel=0.01
    )
    with pytest.raises(ParityError, match="PyTorch's own is 1"):
        check_parity([(exact + 2.1e-4).float()], [stock], [exact], torch.float32)
    check_parity([(exact + 1e-6).float()], [exact.float()], [exact], torch.float32)


def row():
    rounds = {
        "aigc_fast": [[4.0, 4.0], [4.0, 4.0], [9.0, 9.0]],
        "aigc_fast, channels_last": [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0], [4.0, 4.0, 4.0]],
        "PyTorch": [[8.0], [9.0], [10.0]],
        "PyTorch, channels_last": [[6.0], [8.0], [8.0]],
    }
    contest = contest_of(torch.tensor([1.0, 2.0, 3.0]), Work("gemm_float32", 5e7))
    return row_of(CASE, contest, rounds, (1e-7, 2e-7), LIMITS)


def test_the_ratio_is_between_the_fastest_layouts_with_its_spread_over_the_rounds():
    found = row()
    assert (found.way, found.peer) == ("aigc_fast, channels_last", "PyTorch, channels_last")
    assert found.ours[found.way] == Timing(2.0, 2.0, 4.0)
    assert found.peers["PyTorch"] == Timing(9.0, 8.5, 9.5)
    # Of the rounds: 6 / 2, 8 / 2, 8 / 4.
    assert found.ratio == Timing(3.0, 2.5, 3.5)
    # 9 / 4 contiguous, 8 / 2 in channels_last.
    assert found.in_one_layout == 2.25
    # 5·10⁷ operations in 2 ms are 25·10⁹ a second, of 100·10⁹.
    assert (found.share, found.limit) == (0.25, "gemm_float32")


def test_bandwidth_says_nothing_of_what_stays_in_caches():
    assert machine.traffic("copy", machine.CACHED - 1) is None
    assert machine.traffic("copy", 2e9).share(250.0, LIMITS) == pytest.approx(0.8)


def test_results_are_read_as_they_were_written_and_tables_are_written_from_them(tmp_path):
    peers = {"scipy": Timing(1234.5, 1, 1), "PyTorch": Timing(1500, 1, 1)}
    other = dataclasses.replace(row(), op="recursion", share=None, limit=None, peers=peers)
    without_pytorch = dataclasses.replace(row(), ratio=Timing(0.5, 0.5, 0.5), peers={"scipy": Timing(1, 1, 1)})
    assert cells(without_pytorch)[4] == "0.50× (0.50-0.50)"
    slow = dataclasses.replace(row(), op="dropout", peers={"PyTorch": Timing(1, 1, 1)})
    facts = {"processor": "A processor", "level": "avx2", "threads": 2, "torch": "2.13.0", "aigc_fast": "0.1.0"}
    facts |= {"date": "2026-01-01", "peers": {}}
    result = Result(facts, LIMITS, (row(), other, slow))
    result.write(tmp_path / "a.json")
    assert Result.read(tmp_path / "a.json") == result
    text = tables([Result.read(tmp_path / "a.json")])
    assert text.startswith("A processor, avx2, 2 threads, torch 2.13.0, aigc_fast 0.1.0: 100 in float32 and 200 in ")
    assert text.index("`attention`") < text.index("`recursion`")
    assert (
        "| a case | float32, forward | 2 (2-4) | 8 (7-8), PyTorch, channels_last | 3.00× (2.50-3.50) "
        "| 25%, matrix products | 1e-07 (2e-07) |"
    ) in text
    assert "| 1234 (1-1), scipy | 3.00× (2.50-3.50) |  | 1e-07 (2e-07) |" in text
    assert "| 3.00× (2.50-3.50); 0.25× PyTorch in one layout |" in text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"machine": {}, "limits": {}, "rows": [{"op": 1}]}'])
def test_a_file_of_something_else_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: holds no result of a bench"):
        Result.read(tmp_path / "a.json")


@pytest.mark.parametrize("limit", [None, "hope"])
def test_a_share_of_no_limit_is_one_line(tmp_path, limit):
    facts = {"processor": "A processor", "level": "avx2", "threads": 2, "torch": "2.13.0", "aigc_fast": "0.1.0"}
    facts |= {"date": "2026-01-01", "peers": {}}
    Result(facts, LIMITS, (dataclasses.replace(row(), limit=limit),)).write(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"a\.json: holds no result of a bench \(.*: has a share of"):
        Result.read(tmp_path / "a.json")


def test_a_run_tells_its_rows_and_what_it_leaves_out(monkeypatch):
    monkeypatch.setattr("aigc_fast.bench.runner.probe", lambda: LIMITS)
    lonely = Case("recursion", "alone", Recursion(1, 9, 2))
    monkeypatch.setattr("aigc_fast.bench.peers.optional", lambda name: None)
    told = []
    result = run([lonely, Case("dropout", "d", Shape((64, 64), 0.5), mode="training")], 0.01, told.append)
    assert told == ["recursion alone, float32, forward: no peer is installed", result.rows[0]]
    assert isinstance(told[1], Row)
    assert result.machine["torch"] == torch.__version__


def test_work_is_counted_where_it_is_known_and_training_is_more_of_it():
    known = {case.op for case in CASES if case.operations is not None}
    assert {"conv_transpose", "adversarial", "attention", "recursion", "recurrent"} <= known
    assert not known & {"models", "examples", "decode"}
    shape = Convolution(2, 3, 4, (5,), 3, transposed=False)
    forward, training = (Case("adversarial", "c", shape, mode=mode) for mode in ("forward", "training"))
    # 3 places of 3 products: (2, 3, 5) and (4, 3, 3) are read, (2, 4, 3) is written.
    assert (forward.operations, forward.nbytes) == (2 * 2 * 3 * 4 * 9, 4 * (30 + 36 + 24))
    assert (training.operations, training.nbytes) == (3 * forward.operations, 3 * forward.nbytes)
    assert Case("recursion", "r", Recursion(2, 10, 3, True), "float64").nbytes == 8 * (40 + 60)
    assert Case("recursion", "r", Recursion(2, 10, 3)).operations == 120
    assert Case("attention", "a", Attention(1, 2, 1, 3, 4, 8, "full"), "bfloat16").nbytes == 2 * 2 * 8 * (6 + 4)


def test_what_was_measured_before_an_interruption_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr("aigc_fast.bench.runner.probe", lambda: LIMITS)

    def interrupted(case):
        raise KeyboardInterrupt

    monkeypatch.setitem(CONTESTS, "attention", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run([CASE], 0.01)
    result = run([Case("dropout", "d", Shape((64, 64), 0.5), mode="training"), CASE], 0.01)
    assert [row.name for row in result.rows] == ["d"]
    assert not result.complete
    result.write(tmp_path / "a.json")
    assert Result.read(tmp_path / "a.json") == result


def test_on_another_device_whole_models_are_left_out_and_tensors_are_made_there(monkeypatch):
    places = []

    def probe():
        places.append(torch.get_default_device().type)
        return LIMITS

    monkeypatch.setattr("aigc_fast.bench.runner.probe", probe)
    monkeypatch.setitem(
        CONTESTS, "dropout", lambda case: places.append(torch.ones(1).device.type) or Contest({}, {}, None)
    )
    told, device = [], torch.device("meta")
    run(
        [Case("models", "m", WholeModel("dcgan", "step")), Case("dropout", "d", Shape((2,)))], 0.01, told.append, device
    )
    assert places == ["meta", "meta"]
    assert told[0] == "models m, float32, forward: is measured on the CPU alone"
