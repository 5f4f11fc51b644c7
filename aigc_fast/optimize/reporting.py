"""What `optimize` did, layer by layer, as a plain-text table."""

from __future__ import annotations

from dataclasses import dataclass, field

from aigc_fast.wording import sized


@dataclass(frozen=True)
class Entry:
    """One layer, or one Sequential whose chains can be fused.

    Attributes:
        name: the module's name in the model; "(model)" for the model itself.
        layer: the torch class that stands or stood there, or the chain.
        swapped: whether aigc_fast's runs now.
        note: why it is not swapped, or what there is to know; None when there is nothing to say.
        torch_ms: PyTorch's time in milliseconds, median, if example inputs were given.
        fast_ms: aigc_fast's time likewise.
    """

    name: str
    layer: str
    swapped: bool
    note: str | None = None
    torch_ms: float | None = None
    fast_ms: float | None = None


@dataclass(frozen=True)
class Report:
    """What was swapped, what was not and why; `str(report)` is a table.

    Attributes:
        layers: every layer that aigc_fast has a drop-in for.
        fused: every Sequential in which convolutions can run with what follows them.
        others: how many layers of each further type the model holds; aigc_fast has no drop-in for them.
        timed: what was timed: "forward", "forward + backward", or None.
        kept_bytes: memory that the packed and folded forms of the model's weights took when the report was made.
        decoders: every model of transformers whose `generate` can run on the engine, and every one of ours.
        blocks: every block of diffusers and transformers that can do with fewer passes over memory.
    """

    layers: tuple[Entry, ...]
    fused: tuple[Entry, ...] = ()
    others: dict[str, int] = field(default_factory=dict)
    timed: str | None = None
    kept_bytes: int = 0
    decoders: tuple[Entry, ...] = ()
    blocks: tuple[Entry, ...] = ()

    @property
    def swapped(self) -> tuple[Entry, ...]:
        """The layers that run on aigc_fast now."""
        return tuple(entry for entry in self.layers if entry.swapped)

    @property
    def left(self) -> tuple[Entry, ...]:
        """The layers that aigc_fast has a drop-in for and that stay PyTorch's."""
        return tuple(entry for entry in self.layers if not entry.swapped)

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} of {len(self.layers)} layers swapped" + self._timing_text()]
        if self.layers:
            lines += ["", *_table(self.layers, "swapped")]
        if self.fused:
            lines += ["", *_table(self.fused, "fused")]
        if self.blocks:
            lines += ["", *_table(self.blocks, "swapped")]
        if self.decoders:
            lines += ["", *_table(self.decoders, "generates")]
        if self.others:
            counted = ", ".join(f"{count} {name}" for name, count in sorted(self.others.items()))
            lines += ["", f"no drop-in for: {counted}"]
        if self.kept_bytes:
            lines += ["", f"packed weights: {sized(self.kept_bytes)} are kept"]
        return "\n".join(lines)

    def _timing_text(self) -> str:
        return f"; times in ms, median, {self.timed} (fused chains: inference)" if self.timed else ""


def _table(entries: tuple[Entry, ...], verb: str) -> list[str]:
    timed = any(entry.torch_ms is not None for entry in entries)
    head = ["module", "type", verb] + (["torch", "aigc_fast"] if timed else []) + ["note"]
    rows = [head]
    for entry in entries:
        times = [_milliseconds(entry.torch_ms), _milliseconds(entry.fast_ms)] if timed else []
        rows.append([entry.name, entry.layer, "yes" if entry.swapped else "no", *times, entry.note or ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    numeric = {"torch", "aigc_fast"}
    return [
        "  ".join(
            cell.rjust(width) if name in numeric else cell.ljust(width)
            for cell, width, name in zip(row, widths, head, strict=True)
        ).rstrip()
        for row in rows
    ]


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
