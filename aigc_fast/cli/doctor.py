"""`aigc-fast doctor`: what is installed, what it runs on, and why not faster."""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from aigc_fast.cli.app import console
from aigc_fast.cli.explain import DECODE, typical
from aigc_fast.cli.options import chosen_device
from aigc_fast.cli.sharing import scrubbed
from aigc_fast.diagnostics import info
from aigc_fast.ops.examples import examples
from aigc_fast.runtime import native, tuning
from aigc_fast.runtime.backends import BACKEND_VARIABLE
from aigc_fast.runtime.kept import KEPT_VARIABLE, store
from aigc_fast.runtime.machine import processor_name
from aigc_fast.wording import sized

REQUIRED = ("numpy", "safetensors", "pillow", "typer", "rich")
OPTIONAL = {
    "soundfile": "reading WAV files",
    "tensorboard": "train --tensorboard",
    "imageio-ffmpeg": "video files",
    "triton": "Triton kernels",
    "transformers": "its models",
    "diffusers": "its models",
}

_REPORT = """\
### What happened

<!-- The whole message or traceback; of wrong numbers, the error against float64. -->

### How to see it

<!-- The shortest code that shows it. Does it also happen inside `with aigc_fast.backend("reference"):`? -->

```python
import torch
import aigc_fast
```

### What was expected

### Where

| | |
| --- | --- |
{rows}

<details><summary>aigc-fast doctor --json</summary>

```json
{everything}
```

</details>"""
_VARIABLES = (native.ISA_VARIABLE, BACKEND_VARIABLE, KEPT_VARIABLE, tuning.TUNE_VARIABLE, tuning.FOLDER_VARIABLE)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def examine() -> dict[str, Any]:
    """Everything that `doctor` shows, JSON-able: `aigc_fast.info()` and what is around it."""
    return {
        **info(),
        "packages": {name: _version(name) for name in (*REQUIRED, *OPTIONAL)},
        "processor": processor_name(),
        "cores": usable_cores(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "environment": {name: os.environ.get(name) for name in _VARIABLES},
        "tuned": {"file": str(tuning.path()), "calls": len(tuning.measurements())},
        "kept_weights": {"bytes": store.total(), "cap": store.cap},
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "functions": _functions(),
    }


def _functions() -> dict[str, dict[str, Any]]:
    """What runs each typical call, on a card where there is one."""
    with chosen_device(None):
        return {name: _function(name) for name in sorted([*examples(), DECODE])}


def _function(name: str) -> dict[str, Any]:
    try:
        found = typical(name)
    # A broken installation is what doctor is for.
    except Exception as error:
        return {"runs": None, "detail": f"{type(error).__name__}: {error}", "backends": {}}
    return {"runs": found.chosen, "detail": found.detail, "backends": found.reasons}


def _section(title: str, rows: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)
    console.print()


def _show_versions(found: dict[str, Any]) -> None:
    rows = {
        "aigc_fast": found["aigc_fast"],
        "torch": found["torch"],
        "Python": found["python"],
        "system": found["platform"],
    }
    for name, installed in found["packages"].items():
        rows[name] = installed or f"not installed; needed for {OPTIONAL.get(name, 'everything')}: pip install {name}"
    _section("Versions", rows)


def _show_processor(found: dict[str, Any]) -> None:
    library = found["native"]
    rows = {
        "processor": found["processor"],
        "cores for this process": found["cores"],
        "torch's level": found["torch_capability"],
        "torch's threads": found["threads"],
    }
    if "error" in library:
        rows["native library"] = f"not there: {library['error']}"
    else:
        cap = found["environment"][native.ISA_VARIABLE]
        rows["levels here"] = ", ".join(library["levels"])
        rows["level in use"] = library["level"] + (f" (capped by {native.ISA_VARIABLE}={cap})" if cap else "")
        rows["kernel threads"] = f"{library['threads']}, from {library['thread_pool']}"
        rows["calls measured here"] = f"{found['tuned']['calls']}, by aigc-fast tune and the like"
        rows["built with"] = f"{library['compiler']}, {library['flags']}, pybind11 {library['pybind11']}"
    kept = found["kept_weights"]
    rows["packed weights"] = f"{sized(kept['bytes'])} kept of at most {sized(kept['cap'])} ({KEPT_VARIABLE} sets a cap)"
    _section("Processor", rows)


def _show_gpu(found: dict[str, Any]) -> None:
    rows: dict[str, Any] = {"CUDA devices": ", ".join(found["cuda_devices"]) or "none"}
    rows["torch's CUDA"] = torch.version.cuda or "this torch was built without CUDA"
    _section("GPU", rows)


def _show_backends(found: dict[str, Any]) -> None:
    rows = {name: reason or "can run" for name, reason in found["backends"].items()}
    _section(f"Backends (in force: {found['backend']}; {BACKEND_VARIABLE} or aigc_fast.backend(...) forces one)", rows)


def _show_functions(found: dict[str, Any]) -> None:
    rows = {}
    for name, way in found["functions"].items():
        kernel = f" ({way['detail']})" if way["detail"] else ""
        # What can run nothing here stands under Backends already.
        reasons = {other: why for other, why in way["backends"].items() if why and not found["backends"].get(other)}
        others = "".join(f"; not {other}: {why}" for other, why in reasons.items())
        rows[name] = (way["runs"] or "nothing") + kernel + others
    _section("Functions: what runs a typical call (aigc-fast explain FUNCTION tells all)", rows)


def bug_report(found: dict[str, Any]) -> str:
    """A report in Markdown to be filled in: questions first, then what `examine` found, without paths and names."""
    found = scrubbed(found)
    library, installed = found["native"], {name: text for name, text in found["packages"].items() if text}
    facts = {
        "aigc_fast": found["aigc_fast"],
        "torch": found["torch"],
        "Python": found["python"],
        "system": found["platform"],
        "processor": f"{found['processor']}, {found['cores']} cores, torch's level {found['torch_capability']}",
        "native library": library.get("error") or f"{library['level']} of {', '.join(library['levels'])}",
        "CUDA devices": ", ".join(found["cuda_devices"]) or "none",
        "packages": ", ".join(f"{name} {text}" for name, text in installed.items()),
        "environment": ", ".join(f"{name}={text}" for name, text in found["environment"].items() if text) or "none set",
    }
    rows = "\n".join(f"| {name} | {text} |" for name, text in facts.items())
    return _REPORT.format(rows=rows, everything=json.dumps(found, indent=1))


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Print a bug report to fill in, in Markdown: no paths, no names.")
    ] = False,
) -> None:
    """Show versions, instruction sets, threads, GPU, and what runs each function or why not."""
    found = examine()
    if report:
        typer.echo(bug_report(found))
        return
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for show in (_show_versions, _show_processor, _show_gpu, _show_backends, _show_functions):
        show(found)
