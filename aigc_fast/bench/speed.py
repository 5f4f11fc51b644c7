"""The README's section on speed: short tables from what a bench has kept, one machine after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from aigc_fast.bench.cases import CASES
from aigc_fast.bench.runner import Result, Row
from aigc_fast.bench.tables import SLOWER, share, speed, table, without
from aigc_fast.errors import UserError
from aigc_fast.wording import three_digits

START, END = "<!-- speed: made by bench/run.py --readme -->", "<!-- /speed -->"
INTRODUCTION = (
    "Medians in milliseconds; ours and all peers take turns in one run, after each result was checked against "
    "float64. The peer is the fastest of PyTorch contiguous, PyTorch channels_last and, forward in float32, "
    "ONNX Runtime; for recursions, of scipy's `lfilter`, a loop in numba and torchlpc; for recurrent "
    "networks, of PyTorch with and without oneDNN, its cells and ONNX Runtime; for decoding, of transformers, "
    "CTranslate2 and ik_llama.cpp. Speed is the peer's time divided by ours, with its quartiles over the "
    "rounds; the last column is the share of what the machine reached in that run in matrix products, or in "
    "reading or copying memory. Rows that we lose are always shown; all other rows are in `bench/results`. "
    "`aigc-fast bench` measures on your machine, `python bench/run.py --readme` writes this section."
)
TITLES = {
    "models": (
        "Whole models",
        "Stock PyTorch against the same model after `optimize`. On your machine: `aigc-fast bench --op models`.",
    ),
    "conv_transpose": (
        "Transposed convolution",
        "Layers of GANs, vocoders and U-Nets; kernel 4, stride 2, padding 1 unless stated otherwise.",
    ),
    "attention": ("Attention", "`scaled_dot_product_attention` for prompts, single tokens and windows."),
    "linear": ("Linear layers", "`linear` with the activation that follows, without gradients."),
    "norm": ("Norms", "`group_norm`, `instance_norm` and `layer_norm`, each with the activation that follows."),
    "recursion": ("AR recursion", "`ar_recursion`, and `sample_wise_lpc` for time-varying coefficients."),
    "recurrent": (
        "Recurrent networks",
        "`nn.LSTM`, `nn.GRU` and `nn.RNN` with as many inputs as hidden units; one sequence unless stated otherwise.",
    ),
    "sampling": (
        "Sampling characters",
        "64 characters, an embedding and a head: one call of `sample` against loops with `torch.multinomial`.",
    ),
    "decode": (
        "Decoding",
        "transformers' own models after `optimize`, or our models, the faster of the two; with random "
        "weights, except for SmolLM2-135M-Instruct. Quantized weights are compared with transformers in "
        "float32, bfloat16 with bfloat16.",
    ),
    "decode_costs": (
        "What decoding costs",
        "GPT-2 small, one of our own ways compared with another: 0.80× for a step of 5 rows means that it "
        "takes 1.25 times as long as a step of one row. Loading, including packing, is compared with "
        "transformers' loading.",
    ),
    "reparameterize": ("Reparameterised sampling", "`reparameterize_kl` against the formula in PyTorch's operators."),
    "dropout": ("Dropout", "Forward and backward."),
    "seq2seq": (
        "Encoder-decoder",
        "A training step of `Seq2SeqTransformer` against one of `torch.nn.Transformer`; answers against loops "
        "with cached keys and values over the weights of `torch.nn.TransformerDecoderLayer`, including the "
        "encoder.",
    ),
    "examples": (
        "Each public function",
        "The typical call that `aigc-fast explain` shows; against our reference where PyTorch has no such function.",
    ),
    "adversarial": ("What nobody tunes for", "Convolutions far from those that the kernels were designed for."),
}
"""Of each op: the heading, and a sentence."""

_HEADINGS = ("", "", "aigc_fast, ms", "fastest peer, ms", "speed", "of the machine's limit")
_SHOWN = {case.label for case in CASES if case.in_readme}


def section(results: Iterable[Result]) -> str:
    """What stands between the marks: for each op a sentence, and a table for each machine.

    Rows are those of cases that are `in_readme`, and all that we lose.
    """
    results = list(results)
    machines = list(dict.fromkeys(_name(result.machine) for result in results))
    parts = [INTRODUCTION]
    parts += [_told(name, [result for result in results if _name(result.machine) == name]) for name in machines]
    for op, (title, sentence) in TITLES.items():
        found = {name: _rows(op, name, results) for name in machines}
        if any(found.values()):
            parts.append(f"**{title}.** {sentence}")
        for name, rows in found.items():
            if rows:
                parts += [f"On {name}:"] if len(machines) > 1 else []
                parts.append(table(_HEADINGS, map(_cells, rows)))
    return "\n\n".join(parts)


def written(text: str, results: Iterable[Result]) -> str:
    """A README with the section of these results.

    Raises:
        UserError: when the text does not have both marks, once each and in order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in rest or END in before + after:
        raise UserError(f"README.md: expected {START} and {END} once each, in this order")
    return f"{before}{START}\n\n{section(results)}\n\n{END}{after}"


def _name(machine: dict[str, Any]) -> str:
    return f"{machine['processor']}, {machine['level']}, {machine['threads']} threads"


def _told(name: str, results: Sequence[Result]) -> str:
    """The line on a machine, with the versions and days of its results."""
    machines = [result.machine for result in results]
    versions = sorted({f"torch {machine['torch']}, aigc_fast {machine['aigc_fast']}" for machine in machines})
    peers = sorted({f"{peer} {version}" for machine in machines for peer, version in machine["peers"].items()})
    days = sorted({machine["date"] for machine in machines})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{name}; {'; '.join([*versions, *peers])}; {when}."


def _rows(op: str, name: str, results: Iterable[Result]) -> list[Row]:
    rows = [row for result in results if _name(result.machine) == name for row in result.rows]
    return [row for row in rows if row.op == op and (row.label in _SHOWN or _is_lost(row))]


def _is_lost(row: Row) -> bool:
    return min(row.ratio.median, row.in_one_layout) < SLOWER


def _cells(row: Row) -> tuple[str, ...]:
    ours, peer = row.ours[row.way].median, row.peers[row.peer].median
    return (
        row.name,
        f"{row.dtype}, {row.mode}",
        three_digits(ours),
        f"{three_digits(peer)}, {row.peer}{without(row)}",
        speed(row),
        share(row),
    )
