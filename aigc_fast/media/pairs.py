"""Pairs of texts: answers to sources, and how near they come to what stands beside those sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from aigc_fast import data
from aigc_fast.data import PairDataset
from aigc_fast.data.notes import one_line, some
from aigc_fast.data.pairs import SOURCE, TARGET, TASKS, Pair, Task
from aigc_fast.data.text import decoded
from aigc_fast.errors import UserError
from aigc_fast.generation import Provenance, read_text_provenance, write_text
from aigc_fast.generation.text import RECORD_SUFFIX
from aigc_fast.media.kinds import ANSWERS
from aigc_fast.media.medium import Batch, Feed, Medium, check_unmoved, trained_on
from aigc_fast.media.text import BEAMS, DECODING, DRAWING, ENCODING, HELD_OUT_SHARE, LENGTH, PROMPT, TOKENS, held_out_of
from aigc_fast.metrics.pairs import PairReport, evaluate_pairs
from aigc_fast.models import Model, Seq2SeqTransformer
from aigc_fast.runtime.rows import Rows, Split
from aigc_fast.settings import Setting
from aigc_fast.wording import counted

if TYPE_CHECKING:
    from aigc_fast.training.seq2seq import Seq2SeqConfig

_LENGTH_PENALTY = Setting(
    "length_penalty", float, "Of beams: the power of the length that scores are divided by (seq2seq).", default="1.0"
)
_SHOWN = 40


class PairFeed(Feed):
    """Pairs in batches, each pass over the data in another order.

    Args:
        model: to train.
        dataset: pairs of its tokenizer.
        config: of the training; a data set smaller than its `batch_size` is one batch.

    Raises:
        UserError: when there are positions for none of the pairs.
    """

    def __init__(self, model: Seq2SeqTransformer, dataset: PairDataset, config: Seq2SeqConfig) -> None:
        check_unmoved(model, config)
        super().__init__(model, dataset, config)
        self.measure_interval = config.measure_interval
        self._training, self._held_out = (_encoded(model, part) for part in (dataset.training, dataset.held_out))
        left_out = {"": self._training.left_out, "held out: ": self._held_out.left_out}
        self.notes = tuple(f"{where}{note}" for where, note in left_out.items() if note is not None)
        if not self._training.pairs:
            raise UserError(
                f"{dataset.name}: has no pairs for which there are positions: expected a larger max_positions "
                f"(--max-positions) than {model.max_positions}"
            )
        self.ranks.check(self.step_size, "pairs of a batch (--batch-size)")

    @property
    def step_size(self) -> int:
        """See `Feed`: in pairs."""
        return min(self.config.batch_size, len(self._training.pairs))

    @property
    def epoch_steps(self) -> int:
        """See `Feed`."""
        return len(self._training.pairs) // self.step_size

    def batches(self, step: int) -> Iterator[Batch]:
        """See `Feed.batches`."""
        order, epoch = None, None
        for number in count(step):
            now, position = divmod(number, self.epoch_steps)
            if now != epoch:
                epoch, order = now, self._order(now)
            chosen = order[position * self.step_size : (position + 1) * self.step_size]
            sources, targets = ([part[i] for i in chosen] for part in (self._training.sources, self._training.targets))
            here, split = self._part(self.step_size)
            pairs = self.model.pairs(sources[here.start : here.stop], targets[here.start : here.stop])
            if split is not None:
                pairs.of_sources.rows = _rows_of(list(map(len, sources)), here)
                pairs.of_inputs.rows = _rows_of([len(target) - 1 for target in targets], here)
                split = Split(len(pairs.answers) / pairs.of_inputs.rows.total, split.rows)
            yield Batch(pairs, split=split)

    def _order(self, epoch: int) -> list[int]:
        return torch.randperm(len(self._training.pairs), generator=self._generator(epoch)).tolist()

    def measure(self, model: Seq2SeqTransformer) -> Mapping[str, float]:
        """Perplexity per token of the pairs that are held out."""
        if not self._held_out.pairs:
            return {}
        logarithm, tokens = model.score_all(self._held_out.pairs)
        return {"held_out": math.exp(-logarithm / tokens)}

    def write_samples(self, model: Seq2SeqTransformer, seed: int, path: Path, provenance: Provenance) -> str:
        """Examples of held-out pairs with the model's answers. See `Feed.write_samples`."""
        examples = _encoded(model, self.dataset.examples).pairs
        answers = model.generate([source for source, _ in examples]) if examples else []
        text = "\n".join(
            f"{source}\n  target: {one_line(target)}\n  answer: {one_line(answer)}\n"
            for (source, target), answer in zip(examples, answers, strict=True)
        )
        write_text(path.with_suffix(".txt"), text, provenance)
        return text


def _rows_of(lengths: Sequence[int], here: range) -> Rows:
    """Which tokens those of some sequences are, of sequences that lie one after the other."""
    ends = [0, *accumulate(lengths)]
    return Rows(range(ends[here.start], ends[here.stop]), ends[-1])


class _Encoded(NamedTuple):
    """Pairs that a model has positions for, their tokens, and what was left out; None where nothing was."""

    pairs: list[Pair]
    sources: list[np.ndarray]
    targets: list[np.ndarray]
    left_out: str | None


def _encoded(model: Seq2SeqTransformer, pairs: Sequence[Pair]) -> _Encoded:
    kept, long = [], []
    for pair in pairs:
        tokens = model.source_of(pair[0], strict=False), model.target_of(pair[1])
        if model.has_room_for(*tokens):
            kept.append((pair, *tokens))
        else:
            long.append(repr(one_line(pair[0], _SHOWN)))
    note = f"{counted(len(long), 'pairs')} left out, longer than {model.max_positions} tokens: {some(long)}"
    return _Encoded(*map(list, zip(*kept, strict=True)) if kept else ([], [], []), note if long else None)


class PairsOfTexts(Medium):
    """See `Medium`; items are answers, str, to sources."""

    name = "pairs"
    unit = PairDataset.unit
    model = Seq2SeqTransformer
    suffixes = (".txt",)
    beside = (RECORD_SUFFIX,)
    files = (
        "for pairs lines with a tab between source and target (TSV), JSON lines, or a file of sources, with --targets; "
        f"or {' or '.join(TASKS)}, for sequences of letters"
    )
    embedded = "the functions of Python and torch with their documentation"
    reading_settings = (
        Setting("targets", str, "The file of targets beside one of sources, a line each (seq2seq).", metavar="PATH"),
        Setting("source_field", str, "The name of the sources in JSON or columns (seq2seq).", default=SOURCE),
        Setting("target_field", str, "The name of the targets in JSON or columns (seq2seq).", default=TARGET),
        ENCODING,
        HELD_OUT_SHARE,
    )
    data_settings = (*reading_settings, *TOKENS)
    drawing_settings = (
        PROMPT,
        Setting("sources", str, "A file of sources to answer, a line each (seq2seq).", metavar="PATH"),
        LENGTH,
        *DRAWING,
        *DECODING,
        _LENGTH_PENALTY,
    )
    measuring_settings = (*DECODING, _LENGTH_PENALTY)
    kinds = MappingProxyType({ANSWERS: 1})
    streamed = companion = True
    arrangement = ()
    evaluated = 1000
    rows = (
        ("Exact answers", "exact", "{:.3f}", "1"),
        ("chrF", "chrf", "{:.1f}", "100; {chrf_of_others:.1f} by answers to other sources"),
        ("BLEU", "bleu", "{:.1f}", "100; {bleu_of_others:.1f}"),
        ("Perplexity per token", "perplexity", "{:.3f}", "1"),
        ("Different answers", "distinct", "{:.2f}", "{distinct_of_held_out:.2f} of the held-out targets"),
        ("Answers out of training", "known", "{:.2f}", "{known_of_held_out:.2f}"),
    )

    def load(self, path: Path | None, **settings: Any) -> PairDataset:
        """See `Medium.load`."""
        return data.load_pairs(path, **settings)

    def load_for(self, model: Seq2SeqTransformer, path: Path | None, **reading: Any) -> PairDataset:
        """See `Medium.load_for`."""
        if path is None:
            known = trained_on(model).get("name")
            path = next((Task(name) for name in TASKS if known == f"sequences to {name}"), None)
        return data.load_pairs(path, tokenizer=model.tokenizer, **{**held_out_of(model), **reading})

    def load_like(self, training: PairDataset, folder: Path, **reading: Any) -> PairDataset:
        """See `Medium.load_like`: files without their sources say nothing."""
        raise UserError(f"{folder}: expected a model: answers are measured beside their sources")

    def is_item(self, path: Path) -> bool:
        """See `Medium.is_item`."""
        return False

    def items(self, dataset: PairDataset) -> tuple[str, ...]:
        """See `Medium.items`: the targets."""
        return tuple(target for _, target in dataset.training)

    def feed(self, model: Seq2SeqTransformer, dataset: PairDataset, config: Seq2SeqConfig) -> PairFeed:
        """See `Medium.feed`."""
        return PairFeed(model, dataset, config)

    def draw(
        self,
        model: Seq2SeqTransformer,
        count: int,
        seed: int,
        labels: None = None,
        show: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> list[str]:
        """Answers, `count` to each source. See `Medium.draw`.

        Args:
            model, count, seed, labels, show: see there.
            **settings: the source as `prompt`, or the file of them as `sources`; by default examples of what was held
                out when the model was trained. Others as of `Seq2SeqTransformer.generate`, with a `length` in tokens
                and a `temperature` of 0 unless something is drawn; four beams where nothing is.
        """
        settings = dict(settings)
        sources = _sources(model, settings.pop("prompt", None), settings.pop("sources", None))
        found = model.generate(sources, seed=seed, num_return_sequences=count, **_options(settings, count))
        if show is not None:
            for place, answer in enumerate(found):
                if len(sources) > 1 and place % count == 0:
                    show(f"{sources[place // count]}\n")
                show(f"{answer}\n")
        return found

    def draw_to_measure(
        self, model: Seq2SeqTransformer, training: PairDataset, count: int, seed: int, labels: None, **settings: Any
    ) -> list[str]:
        """See `Medium.draw_to_measure`: answers to the first sources that are held out."""
        sources = [source for source, _ in _measured(model, training, count)]
        return model.generate(sources, **_options(dict(settings), 1))

    def pace(self, model: Seq2SeqTransformer) -> str:
        """See `Medium.pace`."""
        return "" if model.speed is None else f"; {model.speed}"

    def joined(self, model: Seq2SeqTransformer, items: Sequence[str], columns: int | None) -> str:
        """See `Medium.joined`: a line each, one alone as it is."""
        return items[0] if len(items) == 1 else "".join(f"{' '.join(item.splitlines())}\n" for item in items)

    def write(self, path: Path, piece: str, model: Seq2SeqTransformer, provenance: Provenance, scale: int) -> None:
        """See `Medium.write`: with the record beside it."""
        write_text(path, piece, provenance)

    def read_provenance(self, path: Path) -> Provenance:
        """See `Medium.read_provenance`."""
        return read_text_provenance(path)

    def measure(self, items: Sequence[str], training: PairDataset, model: Model | None) -> PairReport:
        """See `Medium.measure`."""
        return evaluate_pairs(items, _measured(model, training, len(items)), training.training, model)

    def remarks(self, report: PairReport) -> list[str]:
        """See `Medium.remarks`."""
        return list(report.remarks)


def _measured(model: Seq2SeqTransformer, training: PairDataset, count: int) -> list[Pair]:
    """Held-out pairs that there are positions for, so many at most."""
    if not training.held_out:
        raise UserError(
            f"{training.name}: nothing is held out to be measured by: expected held_out above 0 (--held-out)"
        )
    found = _encoded(model, training.held_out).pairs[:count]
    if not found:
        raise UserError(f"{training.name}: all held-out pairs are longer than the {model.max_positions} positions")
    return found


def _sources(model: Seq2SeqTransformer, prompt: str | None, path: str | None) -> list[str]:
    if prompt is not None and path is not None:
        raise UserError("prompt: expected one of prompt (--prompt) and sources (--sources), got both")
    if prompt is not None:
        return [prompt]
    if path is not None:
        return _lines(Path(path))
    examples = trained_on(model).get("examples")
    if not examples or not all(isinstance(example, str) for example in examples):
        raise UserError("prompt: expected what is to be answered (--prompt), or a file of it (--sources)")
    return [text for text in examples if len(model.source_of(text, strict=False)) <= model.max_positions]


def _lines(path: Path) -> list[str]:
    try:
        text = decoded(path.read_bytes(), path, None)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if text is None or not text.strip():
        raise UserError(f"{path}: holds no text")
    return text.removesuffix("\n").split("\n")


def _options(settings: dict[str, Any], count: int) -> dict[str, Any]:
    """The options of `generate` that settings stand for."""
    temperature, length = settings.pop("temperature", None), settings.pop("length", None)
    drawn = bool(temperature) or any(settings.get(name) for name in ("top_k", "top_p", "min_p"))
    if drawn and settings.get("num_beams", 1) != 1:
        raise UserError(
            f"num_beams={settings['num_beams']}: beam search does not sample: expected no temperature, top_k, top_p "
            "or min_p"
        )
    how = {"do_sample": True, "top_k": 0, "num_beams": 1} if drawn else {"num_beams": max(BEAMS, count)}
    return {**how, **settings, "temperature": temperature or None, "max_new_tokens": length}


PAIRS = PairsOfTexts()
