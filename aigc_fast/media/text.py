"""Text: files of it, and how well a model knows the text that it was trained on, and text of its kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from aigc_fast import data
from aigc_fast.data import TextDataset
from aigc_fast.data.text import HELD_OUT
from aigc_fast.errors import UserError
from aigc_fast.generation import Provenance, read_text_provenance, write_text
from aigc_fast.generation.text import RECORD_SUFFIX
from aigc_fast.media.kinds import PASSAGE, SHARD_SIZE, SHARDS, SINGLE
from aigc_fast.media.medium import Batch, Feed, Medium, check_unmoved, trained_on
from aigc_fast.metrics import TextReport, evaluate_text, perplexity
from aigc_fast.models import CharRNN, DecoderModel, Model, TextModel
from aigc_fast.models.text import BPETokenizer, CharTokenizer
from aigc_fast.models.text.char_rnn import packed_places
from aigc_fast.runtime.rows import Rows, Split
from aigc_fast.runtime.weights import WEIGHTS
from aigc_fast.settings import Setting

if TYPE_CHECKING:
    from aigc_fast.training import TrainingConfig
    from aigc_fast.training.decoders import DecoderConfig
    from aigc_fast.training.text import CharRNNConfig

DEFAULT_LENGTH = 1000
BEAMS = 4
"""By how many answers are found unless it is said."""

_LONGEST_SHOWN = 200
_BETWEEN = "\n\n* * *\n\n"

# Pairs of texts have them, too.
ENCODING = Setting("encoding", str, "How text files are encoded, as Python calls it.", default="utf-8", metavar="NAME")
HELD_OUT_SHARE = Setting(
    "held_out", float, "The share of the text that training does not see.", default=str(HELD_OUT), least=0, most=1
)
TOKENS = (
    Setting(
        "tokenizer",
        str,
        f"What a text model reads one by one: {' or '.join(data.text.TOKENIZERS)}.",
        default=f"{CharTokenizer.kind}; {BPETokenizer.kind} for transformers",
        shapes_model=True,
    ),
    Setting(
        "vocab_size",
        int,
        f"Tokens, at most, where they are {BPETokenizer.kind}.",
        default=str(data.text.VOCAB_SIZE),
        least=1,
        shapes_model=True,
    ),
)
PROMPT = Setting(
    "prompt",
    str,
    "What the text begins with, or what is to be answered.",
    default="nothing: the beginning of a document, or examples",
)
LENGTH = Setting(
    "length",
    int,
    "Characters, or tokens, after the prompt, unless the document or answer ends sooner.",
    default=f"{DEFAULT_LENGTH}, for answers what there are positions for",
    least=1,
)
DRAWING = (
    Setting(
        "temperature",
        float,
        "Below 1 for more of the probable, above for less; 0 for that alone.",
        default="1.0, for answers 0",
    ),
    Setting("top_k", int, "Draw of so many of the most probable characters only.", least=1),
    Setting("top_p", float, "Draw of the most probable characters only that have this probability together."),
    Setting("min_p", float, "Leave out what is less probable than this share of the best (transformers)."),
)
DECODING = (
    Setting(
        "num_beams",
        int,
        "Find the most probable text by so many beams (transformers).",
        default=f"1, for answers {BEAMS}",
        least=1,
    ),
    Setting("no_repeat_ngram_size", int, "Never say so many tokens in a row twice (transformers).", least=0),
    Setting("repetition_penalty", float, "Above 1, tokens that were there are less probable (transformers)."),
)


def held_out_of(model: Model) -> dict[str, float]:
    """`{"held_out": the share of its data that a model did not see}`; empty where that is not known."""
    share = trained_on(model).get("held_out")
    return {"held_out": share} if isinstance(share, int | float) else {}


@dataclass(frozen=True)
class Chunk:
    """What a step reads: at each of B places of the text a part, cut where documents begin.

    Attributes:
        tokens: the parts, packed.
        targets: int64 (total,), what follows each token.
        before: int64, for each part the place whose state it goes on from; B for one that begins without.
        after: int64, for each place that is here the part that its state is taken from.
        places: how many places read, in all processes.
        characters: how many characters of text a token stands for, on average.
        passes: how often the text has been read before, parts of it included.
    """

    tokens: PackedSequence
    targets: Tensor
    before: Tensor
    after: Tensor
    places: int
    characters: float
    passes: float


class DocumentFeed(Feed):
    """All documents at once, as a model that counts takes them.

    Args:
        model: to train.
        dataset: documents of its tokenizer.
        config: of the training.
    """

    measure_interval = 1
    epoch_steps = 1

    def __init__(self, model: TextModel, dataset: TextDataset, config: TrainingConfig) -> None:
        check_unmoved(model, config)
        super().__init__(model, dataset, config)

    @property
    def step_size(self) -> int:
        """See `Feed`."""
        return len(self.dataset)

    def batches(self, step: int) -> Iterator[Batch]:
        """See `Feed.batches`."""
        while True:
            yield Batch(self.dataset.training)

    def measure(self, model: TextModel) -> Mapping[str, float]:
        """Bits per character of the documents that are held out."""
        if not self.dataset.held_out:
            return {}
        return {"held_out": perplexity(model, self.dataset.held_out).bits_per_character}

    def write_samples(self, model: TextModel, seed: int, path: Path, provenance: Provenance) -> str:
        """One text. See `Feed.write_samples`."""
        (text,) = TEXT.draw(model, 1, seed)
        write_text(path.with_suffix(".txt"), text, provenance)
        return text


class ChunkFeed(DocumentFeed):
    """The documents one after the other, in another order each time, read at many places side by side.

    Args:
        model: to train.
        dataset: documents of its tokenizer.
        config: a `CharRNNConfig`.

    Raises:
        UserError: when there is less text than one place reads in a step.
    """

    def __init__(self, model: CharRNN, dataset: TextDataset, config: CharRNNConfig) -> None:
        super().__init__(model, dataset, config)
        tokenizer = model.tokenizer
        self.unit, self.measure_interval = tokenizer.kind, config.measure_interval
        self._end = torch.tensor([tokenizer.boundary])
        encoded = (tokenizer.encode_array(document, strict=False) for document in dataset.training)
        self._documents = [torch.cat([self._end, torch.from_numpy(tokens)]) for tokens in encoded]
        size = sum(map(len, self._documents))
        if size < config.chunk:
            raise UserError(
                f"{dataset.name}: {size} {tokenizer.kind} are less than the {config.chunk} that a step reads: expected "
                "more text, or a smaller chunk (--chunk)"
            )
        self._characters = sum(map(len, dataset.training)) / size
        self._places = min(config.batch_size, size // config.chunk)
        self.ranks.check(self._places, "places in the text (--batch-size)")
        # What each place reads in a pass; a few of the last tokens, which are others each time, are left.
        self._share = size // self._places

    @property
    def step_size(self) -> int:
        """See `Feed`: in tokens."""
        return self._places * self.config.chunk

    @property
    def epoch_steps(self) -> int:
        """See `Feed`."""
        return -(-self._share // self.config.chunk)

    def batches(self, step: int) -> Iterator[Batch]:
        """See `Feed.batches`."""
        text, epoch = None, None
        for number in count(step):
            now, position = divmod(number, self.epoch_steps)
            if now != epoch:
                epoch = now
                order = torch.randperm(len(self._documents), generator=self._generator(epoch)).tolist()
                text = torch.cat([*(self._documents[place] for place in order), self._end])
            yield self._chunk(text, position * self.config.chunk, number / self.epoch_steps)

    def _chunk(self, text: Tensor, done: int, passes: float) -> Batch:
        """What follows the first tokens that each place has read already."""
        steps = torch.arange(min(self.config.chunk, self._share - done))
        grid = (torch.arange(self._places) * self._share + done)[:, None] + steps
        is_first = text[grid] == self._end
        begins = is_first.clone()
        begins[:, 0] = True
        place, step = begins.nonzero(as_tuple=True)
        lengths = torch.diff(place * len(steps) + step, append=torch.tensor([grid.numel()]))
        goes_on = ~is_first[place, step] & (done > 0)
        before = place.where(goes_on, self.config.batch_size)
        last = torch.diff(place, append=torch.tensor([self._places])).nonzero()[:, 0]
        order = lengths.argsort(descending=True, stable=True)
        starts, lengths = grid[place, step][order], lengths[order]
        here, split = self._part(self._places)
        if split is not None:
            mine = ((place[order] >= here.start) & (place[order] < here.stop)).nonzero()[:, 0]
            split = _split(lengths, mine)
            order, starts, lengths, last = order[mine], starts[mine], lengths[mine], last[here.start : here.stop]
        places, batch_sizes = packed_places(starts, lengths)
        device = self.model.device
        chunk = Chunk(
            tokens=PackedSequence(text[places].to(device), batch_sizes),
            targets=text[places + 1].to(device),
            before=before[order].to(device),
            after=(last[:, None] == order).nonzero()[:, 1].to(device),
            places=self._places,
            characters=self._characters,
            passes=passes,
        )
        return Batch(chunk, split=split)


def _split(lengths: Tensor, parts: Tensor) -> Split:
    """What some of the parts of a packed sequence are of it, whose lengths fall."""
    sizes = (torch.arange(int(lengths[0]))[:, None] < lengths).sum(1)
    own = lengths[parts]
    there = torch.arange(int(own[0]))[:, None] < own
    places = ((sizes.cumsum(0) - sizes)[: len(there), None] + parts)[there]
    total = int(lengths.sum())
    return Split(len(places) / total, (Rows(places, total),))


@dataclass(frozen=True)
class Windows:
    """What a step of a transformer reads.

    Attributes:
        tokens: int64 (N, context + 1): all but the last are read, all but the first foreseen.
        bytes: how many bytes of text a token stands for, on average.
        passes: how often the text has been read before, parts of it included.
    """

    tokens: Tensor
    bytes: float
    passes: float


class WindowFeed(DocumentFeed):
    """Windows of the documents one after the other, cut in other places and read in another order each time.

    Args:
        model: to train.
        dataset: documents of its tokenizer.
        config: a `DecoderConfig`.

    Raises:
        UserError: when there is less text than one window.
    """

    def __init__(self, model: DecoderModel, dataset: TextDataset, config: DecoderConfig) -> None:
        super().__init__(model, dataset, config)
        tokenizer = model.tokenizer
        self.unit, self.measure_interval = "tokens", config.measure_interval
        encoded = [tokenizer.encode_array(document, strict=False) for document in dataset.training]
        ends = [np.concatenate([[tokenizer.start], tokens, [tokenizer.boundary]]) for tokens in encoded]
        if tokenizer.start == tokenizer.boundary:
            ends = [ends[0], *(tokens[1:] for tokens in ends[1:])]
        self._text = torch.from_numpy(np.concatenate(ends))
        self._count = (len(self._text) - 1) // model.context
        if not self._count:
            raise UserError(
                f"{dataset.name}: {len(self._text)} tokens are less than the {model.context + 1} that a window reads: "
                "expected more text, or a smaller context (--context)"
            )
        self.ranks.check(self._rows, "windows of a batch (--batch-size)")
        self._bytes = sum(len(document.encode()) for document in dataset.training) / len(self._text)

    @property
    def _rows(self) -> int:
        return min(self.config.batch_size, self._count)

    @property
    def step_size(self) -> int:
        """See `Feed`: in tokens."""
        return self._rows * self.model.context

    @property
    def epoch_steps(self) -> int:
        """See `Feed`."""
        return self._count // self._rows

    def batches(self, step: int) -> Iterator[Batch]:
        """See `Feed.batches`."""
        context, epoch, starts = self.model.context, None, None
        here, split = self._part(self._rows)
        for number in count(step):
            now, position = divmod(number, self.epoch_steps)
            if now != epoch:
                epoch, generator = now, self._generator(now)
                left = len(self._text) - 1 - self._count * context
                shift = torch.randint(left + 1, (1,), generator=generator)
                starts = torch.randperm(self._count, generator=generator) * context + shift
            first = position * self._rows
            chosen = starts[first + here.start : first + here.stop]
            tokens = self._text[chosen[:, None] + torch.arange(context + 1)]
            yield Batch(Windows(tokens.to(self.model.device), self._bytes, number / self.epoch_steps), split=split)

    def measure(self, model: TextModel) -> Mapping[str, float]:
        """Bits per byte of the documents that are held out: tokens are of many lengths."""
        if not self.dataset.held_out:
            return {}
        return {"held_out": perplexity(model, self.dataset.held_out).bits_per_byte}


def weights_kept(model: TextModel, weights: str) -> TextModel:
    """The model, which keeps its weights so from then on.

    Raises:
        UserError: if it can't, or on an unknown name.
    """
    try:
        model.keep_weights(weights)
    except ValueError as error:
        raise UserError(str(error)) from None
    return model


class Text(Medium):
    """See `Medium`; items are texts, str."""

    name = "text"
    unit = TextDataset.unit
    model = TextModel
    suffixes = (".txt",)
    beside = (RECORD_SUFFIX,)
    files = "for text a file of it, or a folder of them"
    embedded = "the help topics of Python"
    batch_unit = "places in the text"
    reading_settings = (ENCODING, HELD_OUT_SHARE)
    data_settings = (*reading_settings, *TOKENS)
    drawing_settings = (
        PROMPT,
        LENGTH,
        *DRAWING,
        Setting("stop", str, "End before this, where it comes up."),
        *DECODING,
        Setting("weights", str, f"How weights are kept: {', '.join(WEIGHTS)}."),
    )
    kinds = MappingProxyType({PASSAGE: 1, SINGLE: 4, SHARDS: SHARD_SIZE})
    streamed = companion = True
    arrangement = ()
    evaluated = 20
    rows = (
        ("Perplexity per character", "perplexity_per_character", "{:.3f}", "1; of held-out text, as the next three"),
        ("Perplexity per byte", "perplexity_per_byte", "{:.3f}", "1"),
        ("Bits per character", "bits_per_character", "{:.3f}", "0"),
        ("Bits per byte", "bits_per_byte", "{:.4f}", "0"),
        ("Distinct words", "distinct_1", "{:.2f}", "{distinct_1_of_held_out:.2f} in as much held-out text"),
        ("Distinct pairs of words", "distinct_2", "{:.2f}", "{distinct_2_of_held_out:.2f}"),
        (
            "Copied passages",
            "copied",
            "{:.2f}",
            "{copied_of_held_out:.2f}: of 20 characters, that the training text holds too",
        ),
        ("Longest copied passage", "longest_copied", "{}", "{longest_copied_of_held_out} characters"),
        ("How weights are kept", "weights", "{}", "as they are"),
        (
            "Perplexity per token",
            "perplexity_per_token",
            "{:.4f}",
            "{perplexity_per_token_as_they_are:.4f}, as they are",
        ),
        ("Bits per byte as they are", "bits_per_byte_as_they_are", "{:.4f}", "0"),
        (
            "Divergence in nats per token",
            "divergence",
            "{:.6f}",
            "0: Kullback and Leibler's, from them",
        ),
        ("Same most probable token", "agreement", "{:.4f}", "1"),
    )

    def load(self, path: Path | None, **settings: Any) -> TextDataset:
        """See `Medium.load`."""
        return data.load_text(path, **settings)

    def load_for(self, model: TextModel, path: Path | None, **reading: Any) -> TextDataset:
        """See `Medium.load_for`."""
        return data.load_text(path, tokenizer=model.tokenizer, **{**held_out_of(model), **reading})

    def load_like(self, training: TextDataset, folder: Path, **reading: Any) -> TextDataset:
        """See `Medium.load_like`."""
        return data.load_text(folder, **{**reading, "held_out": 0})

    def is_item(self, path: Path) -> bool:
        """See `Medium.is_item`."""
        return path.suffix.lower() in self.suffixes

    def items(self, dataset: TextDataset) -> tuple[str, ...]:
        """See `Medium.items`."""
        return dataset.training

    def feed(self, model: TextModel, dataset: TextDataset, config: TrainingConfig) -> DocumentFeed:
        """See `Medium.feed`."""
        feeds = {CharRNN: ChunkFeed, DecoderModel: WindowFeed}
        found = (feed for family, feed in feeds.items() if isinstance(model, family))
        return next(found, DocumentFeed)(model, dataset, config)

    def draw(
        self,
        model: TextModel,
        count: int,
        seed: int,
        labels: None = None,
        show: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> list[str]:
        """Texts with their prompts; `settings` as those of `TextModel.generate`. See `Medium.draw`."""
        known = inspect.signature(model.stream).parameters
        if "weights" in settings and "weights" not in known:
            weights_kept(model, settings.pop("weights"))
        if unknown := [name for name in settings if name not in known]:
            raise UserError(f"{unknown[0]}: {model.name} has no such setting")
        generator, texts = torch.Generator().manual_seed(seed), []
        show = show or (lambda part: None)
        for index in range(count):
            stream = model.stream(**{"length": DEFAULT_LENGTH, **settings}, generator=generator)
            parts = [settings.get("prompt", "")]
            show(_BETWEEN * (index > 0) + parts[0])
            for part in stream:
                show(part)
                parts.append(part)
            texts.append("".join(parts))
        return texts

    def draw_each(self, model: TextModel, seeds: Sequence[int], labels: None, **settings: Any) -> list[str]:
        """See `Medium.draw_each`."""
        return [self.draw(model, 1, seed, **settings)[0] for seed in seeds]

    def pace(self, model: TextModel) -> str:
        """See `Medium.pace`: of models that tell it."""
        speed = getattr(model, "speed", None)
        return "" if speed is None else f"; {speed}"

    def joined(self, model: TextModel, items: Sequence[str], columns: int | None) -> str:
        """See `Medium.joined`: one after the other."""
        return _BETWEEN.join(items)

    def write(self, path: Path, piece: str, model: TextModel, provenance: Provenance, scale: int) -> None:
        """See `Medium.write`: with the record beside it."""
        write_text(path, piece, provenance)

    def read_provenance(self, path: Path) -> Provenance:
        """See `Medium.read_provenance`."""
        return read_text_provenance(path)

    def measure(self, items: Sequence[str], training: TextDataset, model: Model | None) -> TextReport:
        """See `Medium.measure`."""
        return evaluate_text(items, training.training, training.held_out, model)

    def remarks(self, report: TextReport) -> list[str]:
        """See `Medium.remarks`."""
        return [f"The longest copied passage reads:  {report.passage[:_LONGEST_SHOWN]!a}"]


TEXT = Text()
