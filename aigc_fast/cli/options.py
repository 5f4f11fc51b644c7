"""Options and checks that several commands share, and how they find models, data and devices."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from aigc_fast.data import Dataset
from aigc_fast.errors import UserError
from aigc_fast.files import make_folder
from aigc_fast.media import all_media, medium_of
from aigc_fast.media.medium import trained_on
from aigc_fast.models import MODELS, DecoderModel, Model, load
from aigc_fast.models.storage import read_metadata
from aigc_fast.models.text.pretrained import is_pretrained
from aigc_fast.settings import Setting
from aigc_fast.training import MODEL_FILE
from aigc_fast.wording import counted, listed

MAX_SEED = 2**63 - 1
RUNS = Path("runs")
MEDIA = all_media()
"""What models make, by the word that the command line uses."""


def with_default(text: str, default: object) -> str:
    """The help text of an option whose default is not its own: typer would put it into brackets of two kinds."""
    return rf"{text} \[default: {default}]"


def as_parameter(setting: Setting, default: object = None, panel: str | None = None) -> inspect.Parameter:
    """A setting as the parameter of a command, which gets None, or False, where it is not given.

    Args:
        setting: what to offer.
        default: what holds where it is not given, for the help; None tells nothing.
        panel: the heading that it stands under.
    """
    text = setting.help if default is None else with_default(setting.help, default)
    look: dict[str, Any] = {"help": text, "rich_help_panel": panel}
    if setting.kind is bool:
        kind, option = bool, typer.Option(f"--{setting.name.replace('_', '-')}", **look)
    else:
        kind = setting.kind | None
        option = typer.Option(min=setting.least, max=setting.most, metavar=setting.metavar, show_default=False, **look)
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if setting.kind is bool else None,
        annotation=Annotated[kind, option],
    )


def offering(**added: Iterable[inspect.Parameter]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command so that it takes more parameters, in place of its `**given`.

    Args:
        **added: parameters by the name of the one that they come before.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = []
        for parameter in own:
            parameters += added.get(parameter.name, ())
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        command.__signature__ = inspect.Signature(parameters)
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def all_settings(kind: str) -> list[Setting]:
    """What the media declare under a name, as drawing_settings, each once."""
    return list(dict.fromkeys(setting for medium in MEDIA.values() for setting in getattr(medium, kind)))


def chosen(given: Mapping[str, Any], settings: Iterable[Setting]) -> dict[str, Any]:
    """Those of the settings that were given."""
    values = {setting.name: given[setting.name] for setting in settings}
    return {name: value for name, value in values.items() if value is not None and value is not False}


def checked_seed(seed: int) -> int:
    """A seed that PyTorch's generators take."""
    if seed > MAX_SEED:
        raise UserError(f"--seed: expected at most {MAX_SEED}, got {seed}")
    return seed


Subject = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help=f"A model file that train wrote, its folder, a Hugging Face folder or GGUF file, or a medium, "
        f"{' or '.join(MEDIA)}: the newest model of it under {RUNS}.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help=with_default(
            "; ".join(medium.files for medium in MEDIA.values()) + ".",
            ", or ".join(medium.embedded for medium in MEDIA.values()) + ", that come with the package",
        ),
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, callback=checked_seed, help="The same seed gives the same.")]
Class = Annotated[
    str | None,
    typer.Option(
        "--class",
        metavar="NAME",
        help=with_default("Draw this class alone, by its name or number (conditional models).", "all in turn"),
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help=with_default("Where to compute: cpu, cuda, cuda:1, mps.", "cuda where there is one, else cpu"),
        show_default=False,
    ),
]


def chosen_device(name: str | None) -> torch.device:
    """The device of a `Device` option.

    Raises:
        UserError: when the name is none of PyTorch's devices, or there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = _devices()
    try:
        device = torch.device(name)
        if device.type in here and (device.index or 0) < here[device.type]:
            torch.empty(1, device=device)
            return device
    except RuntimeError as error:
        raise UserError(f"--device {name}: {str(error).partition(chr(10))[0]}") from None
    names = [kind if index == 0 else f"{kind}:{index}" for kind, count in here.items() for index in range(count)]
    raise UserError(f"--device {name}: there is no such device here, expected {' or '.join(names)}")


def _devices() -> dict[str, int]:
    """How many devices of each kind there are."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {"cpu": 1, **({} if found is None else {found.type: torch.accelerator.device_count()})}


def new_file(path: Path, overwrite: bool, option: str = "--out") -> Path:
    """Checks, before any work is done, that the file that an option names can be written.

    Raises:
        UserError: when it is there already and may not be replaced, or its folder can't be written to.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already: choose another {option}, or give --overwrite")
    make_folder(path.parent)
    return path


def new_files(overwrite: bool, files: Mapping[str, Path | None]) -> None:
    """Checks, before any work is done, that the files of several options, where they are given, can be written.

    Raises:
        UserError: as `new_file`, and where two options name the same file.
    """
    named: dict[Path, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        other = named.setdefault(path.resolve(), option)
        if other != option:
            raise UserError(f"{other} and {option} both name {path}: choose another {option}")
        new_file(path, overwrite, option)


def load_model(subject: Path, device: torch.device) -> Model:
    """The model that a `Subject` means, on a device.

    Raises:
        UserError: when there is none, or its file is damaged.
    """
    path = model_file(subject)
    return (DecoderModel.from_pretrained(path) if is_pretrained(path) else load(path)).to(device)


def model_file(subject: Path) -> Path:
    """The model file that a `Subject` means; a Hugging Face folder itself.

    Raises:
        UserError: on a medium that no run has a model of, or a folder without a model.
    """
    if is_pretrained(subject):
        return subject
    if has_model(subject):
        return subject / MODEL_FILE
    if str(subject) in MEDIA and not subject.is_file():
        return _newest(str(subject))
    if subject.is_dir():
        raise UserError(f"{subject}: the folder holds no {MODEL_FILE}")
    return subject


def has_model(folder: Path) -> bool:
    """Whether a folder is a run's, with its model, or a Hugging Face one."""
    return (folder / MODEL_FILE).is_file() or is_pretrained(folder)


def _newest(medium: str) -> Path:
    makers = [name for name, model in MODELS.items() if medium_of(model).name == medium]
    found = [path for path in RUNS.glob(f"*/{MODEL_FILE}") if _maker(path) in makers]
    if not found:
        raise UserError(
            f"{medium}: no run under {RUNS} has a model of it: aigc-fast train {makers[-1]}, or name a model file"
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def _maker(path: Path) -> str | None:
    try:
        return read_metadata(path).get("model")
    except UserError:
        return None


def tell(dataset: Dataset, err: bool = False) -> None:
    """Prints what was done to the items as they were read."""
    for note in dataset.notes:
        typer.echo(f"Note: {note}", err=err)


def class_names(model: Model) -> list[str]:
    """What the classes of a conditional model are called; their numbers where its file does not say."""
    names = getattr(model, "metadata", {}).get("classes")
    count = model.num_classes or 0
    known = isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)
    return names if known else [str(index) for index in range(count)]


def class_of(model: Model, given: str | None, option: str = "--class") -> int | None:
    """The number of the class that an option names, by its name or else by its number.

    Raises:
        UserError: when the model has no such class, or no classes.
    """
    if given is None:
        return None
    names = class_names(model)
    if not names:
        raise UserError(f"{option} {given}: {model.name} was built without classes (train --conditional)")
    if given in names:
        return names.index(given)
    if given.isdecimal() and int(given) < len(names):
        return int(given)
    raise UserError(f"{option} {given}: expected one of {listed(names)}, or a number from 0 to {len(names) - 1}")


def training_data(model: Model, path: Path | None, **reading: Any) -> Dataset:
    """Data of the shape that a model makes: what it was trained on, as far as its file says what that was.

    `reading` as the medium's `reading_settings`.

    Raises:
        UserError: when there is none, or `path` is None and the model was trained on other data than comes with the
            package.
    """
    found = medium_of(model).load_for(model, path, **reading)
    if path is None:
        _check_trained_on(model, found)
    return found


def _check_trained_on(model: Model, found: Dataset) -> None:
    known = trained_on(model)
    if known and known.get("checksum") != found.checksum():
        count = known.get(found.unit)
        size = f" ({counted(count, found.unit)})" if isinstance(count, int) else ""
        raise UserError(
            f"{model.name} was trained on {known.get('name')}{size}, not on what comes with the package "
            f"({found.name}): give --data"
        )
