"""How near answers come to what was wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aigc_fast.checks import check_pairs, check_strings
from aigc_fast.errors import UserError
from aigc_fast.models.text import Seq2SeqTransformer


@dataclass(frozen=True)
class PairReport:
    """The result of `evaluate_pairs`.

    Attributes:
        count: number of answers.
        training_count: number of pairs that the model was trained on.
        exact: share of the answers that equal their target, character by character.
        chrf: chrF of the answers (Popović, "chrF: character n-gram F-score for automatic MT evaluation", 2015); None
            without the sacrebleu package.
        chrf_of_others: the same for the targets of other sources: what a model reaches that ignores the source.
        bleu: BLEU of the answers (Papineni, Roukos, Ward and Zhu, "BLEU: a method for automatic evaluation of machine
            translation", 2002), as Post's sacrebleu finds it; None without the package.
        bleu_of_others: the same for the targets of other sources.
        perplexity: exp of the mean -log of the probability of the targets' tokens, with their ends; None without a
            model.
        distinct: number of different answers, as a share of all.
        distinct_of_held_out: the same for the targets.
        known: share of the answers that are targets of training pairs.
        known_of_held_out: the same for the targets.
        remarks: what is missing and why, in lines to show.
    """

    count: int
    training_count: int
    exact: float
    chrf: float | None
    chrf_of_others: float | None
    bleu: float | None
    bleu_of_others: float | None
    perplexity: float | None
    distinct: float
    distinct_of_held_out: float
    known: float
    known_of_held_out: float
    remarks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The attributes as a JSON-able dictionary."""
        return asdict(self)


def evaluate_pairs(
    answers: Sequence[str],
    held_out: Sequence[tuple[str, str]],
    training: Sequence[tuple[str, str]],
    model: Seq2SeqTransformer | None = None,
) -> PairReport:
    """Measures answers against targets.

    Args:
        answers: to the sources of `held_out`, in order.
        held_out: pairs that the model was not trained on.
        training: pairs that it was trained on.
        model: by which the targets are foreseen.

    Returns:
        The report.

    Raises:
        TypeError: if answers are no sequence of strings, or the others none of pairs of strings.
        UserError: if there are not as many answers as pairs.
    """
    check_strings("answers", answers)
    check_pairs("held_out", held_out)
    check_pairs("training", training)
    if len(answers) != len(held_out) or not held_out:
        raise UserError(f"answers: got {len(answers)}, expected one for each of {len(held_out)} pairs, at least one")
    targets = [target for _, target in held_out]
    known = {target for _, target in training}
    # Those nearby may be alike: what is of one module is.
    half = len(targets) // 2
    others = [*targets[half:], *targets[:half]]
    (chrf, bleu), (chrf_of_others, bleu_of_others) = _scores(answers, targets), _scores(others, targets)
    perplexity = None
    if model is not None:
        logarithm, tokens = model.score_all(held_out)
        perplexity = math.exp(-logarithm / tokens)
    return PairReport(
        count=len(answers),
        training_count=len(training),
        exact=sum(answer == target for answer, target in zip(answers, targets, strict=True)) / len(answers),
        chrf=chrf,
        chrf_of_others=chrf_of_others,
        bleu=bleu,
        bleu_of_others=bleu_of_others,
        perplexity=perplexity,
        distinct=len(set(answers)) / len(answers),
        distinct_of_held_out=len(set(targets)) / len(targets),
        known=sum(answer in known for answer in answers) / len(answers),
        known_of_held_out=sum(target in known for target in targets) / len(targets),
        remarks=() if chrf is not None else (f"For chrF and BLEU: {_INSTALL}",),
    )


_INSTALL = "pip install 'aigc-fast[metrics]'"


def _scores(answers: Sequence[str], targets: Sequence[str]) -> tuple[float | None, float | None]:
    """chrF and BLEU; None where the package is not installed."""
    try:
        import sacrebleu
    except ImportError:
        return None, None
    wanted = [list(targets)]
    return tuple(measure(list(answers), wanted).score for measure in (sacrebleu.corpus_chrf, sacrebleu.corpus_bleu))
