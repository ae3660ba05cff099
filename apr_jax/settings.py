"""Configurations: frozen dataclasses written in Python files, changed by typed options of the command line.

A configuration file is Python with a function `config()` that returns a frozen dataclass. A program reads it with

    config = settings.parse(argv, "configs/sft_apr.py")

and its user may write `--config other_file.py` (or `other_file.py:NAME`, for another function than `config`) and then any field by
its dotted name: `--optimizer.learning-rate 1e-3`.
Unknown names are refused with the nearest known name, wrong values with the allowed ones; both end the
program with code 2.
"""

import dataclasses
import json
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tyro

from apr_jax import files

FREE = {"free": True}
"""Metadata of a field that may differ when a run is resumed: it changes neither the data nor the numbers computed."""
CLASS = "class"
"""The key under which the dict of a dataclass says its class; no field can have this name."""
MODULE = "config file "
"""How the names of the modules begin that configuration files become."""
FILE = "settings.json"
"""In a folder of results, the resolved configuration; models have a `config.json`."""


def fail(message: str) -> NoReturn:
    """End the program with one line on the standard error and exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def load(path: str | Path) -> Any:
    """The configuration of a file: the value that its `config()` returns, or with `FILE.py:NAME` its function `NAME()`.

    Raises:
        ValueError: there is no such file, the file has no such function, or it returns no instance of a dataclass.
    """
    place, colon, name = str(path).rpartition(":")
    place, name = (place, name) if colon and name.isidentifier() else (str(path), "config")
    if not Path(place).is_file():
        raise ValueError(f"--config {path}: there is no such file; give a Python file with a function {name}()")
    module = types.ModuleType(f"{MODULE}{Path(place).resolve()}".replace(".", "_"))
    module.__file__ = place
    sys.modules[module.__name__] = module  # readers of the classes defined in the file look the module up here
    exec(compile(Path(place).read_bytes(), place, "exec"), module.__dict__)
    if not hasattr(module, name):
        raise ValueError(f"--config {path}: the file has no function {name}(); it should return a frozen dataclass")
    config = getattr(module, name)()
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ValueError(f"--config {path}: {name}() returned {type(config).__name__}, not an instance of a dataclass")
    return config


def parse(
    argv: Sequence[str],
    default: str | Path | Any,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Read the command line of a program.

    Args:
        argv: the arguments, without the program's name.
        default: the configuration file used without `--config`, or a configuration.
        presets: named values of fields that hold a dataclass, by dotted name: `{"model": PRESETS}` allows
            `--model small` (single fields can be changed after that, `--model.layers 2`).

    Returns:
        The configuration of the file, with the changes of the command line. If `default` is a configuration, files must return
        one of the same type.

    Raises:
        SystemExit: code 2 and a message on the standard error if an argument or the file is wrong; code 0 after `--help`.
    """
    rest = list(argv)
    is_file = isinstance(default, str | Path)
    path = _take(rest, "config")
    try:
        config = load(path or default) if path or is_file else default
        for field, values in (presets or {}).items():
            name = _take(rest, field)
            if name is not None:
                if name not in values:
                    raise ValueError(f"--{field} {name}: allowed are {', '.join(values)}")
                config = _replace(config, field, values[name])
    except ValueError as error:
        fail(str(error))
    if not is_file and type(config) is not type(default):
        fail(f"--config {path}: it describes {type(config).__name__}, this program wants {type(default).__name__}")
    description = (
        f"Configuration: {path or (default if is_file else type(config).__name__)} (--config FILE.py for another)"
    )
    config = tyro.cli(
        type(config),
        prog=Path(sys.argv[0]).stem,
        description=description,
        args=rest,
        default=config,
        # The file chooses among several dataclasses for a field; the fields of the chosen one are ordinary options.
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
    )
    try:
        for name, value in flatten(config).items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    files.local(text, name)
    except ValueError as error:
        fail(str(error))
    return config


def _take(arguments: list[str], name: str) -> str | None:
    """Remove `--name VALUE` or `--name=VALUE` from the arguments and return the value, the last one if repeated."""
    value, option = None, f"--{name}"
    for spelling in {option, option.replace("_", "-"), option.replace("-", "_")}:
        while True:
            place = next((i for i, a in enumerate(arguments) if a == spelling or a.startswith(spelling + "=")), None)
            if place is None:
                break
            if "=" in arguments[place]:
                value = arguments.pop(place).split("=", 1)[1]
            elif place + 1 < len(arguments):
                value = arguments[place + 1]
                del arguments[place : place + 2]
            else:
                fail(f"{spelling} needs a value")
    return value


def _replace(config: Any, field: str, value: Any) -> Any:
    """`dataclasses.replace` for a dotted name."""
    head, _, tail = field.replace("-", "_").partition(".")
    return dataclasses.replace(config, **{head: _replace(getattr(config, head), tail, value) if tail else value})


def to_dict(config: Any) -> Any:
    """A configuration as nested dicts and lists that JSON can hold.

    Each dataclass inside is stored with its `class`, because two with equal fields may be different tasks or methods.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: _part(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): _part(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [_part(value) for value in config]
    if isinstance(config, Path):
        return str(config)
    return config


def _part(value: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return to_dict(value)
    kind = type(value)
    # A class defined in a configuration file has the same name wherever the file lies.
    name = kind.__qualname__ if kind.__module__.startswith(MODULE) else f"{kind.__module__}.{kind.__qualname__}"
    return {**to_dict(value), CLASS: name}


def class_name(value: Any) -> str:
    """The name of an object's class in snake case: `spawn_join` of a SpawnJoin."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(value).__name__).lower()


def flatten(config: Any) -> dict[str, Any]:
    """A configuration (or its `to_dict`) as one dict from dotted names to values."""
    flat: dict[str, Any] = {}

    def visit(value: Any, name: str) -> None:
        nested = isinstance(value, list) and any(isinstance(item, dict) for item in value)
        if isinstance(value, dict) or nested:
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                visit(item, f"{name}.{key}" if name else str(key))
        else:
            flat[name] = value

    visit(to_dict(config), "")
    return flat


def describe(config: Any) -> str:
    """The resolved configuration as text, one dotted field per line, and the class of fields that allow several classes."""
    classes = {f"{name}.{CLASS}" for name in _chosen(config)}
    flat = {name: value for name, value in flatten(config).items() if not _is_class(name) or name in classes}
    width = max(map(len, flat), default=0)
    return "\n".join(f"{name:<{width}} = {value!r}" for name, value in flat.items())


def _chosen(value: Any, name: str = "") -> Iterator[str]:
    """Dotted names and class names of the dataclasses of which there are several kinds (their class has a base)."""
    if dataclasses.is_dataclass(value):
        if type(value).__base__ is not object:
            yield name
        items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        items = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, tuple | list) else []
    for key, item in items:
        yield from _chosen(item, f"{name}.{key}" if name else str(key))


def save(config: Any, folder: str | Path) -> Path:
    """Write the resolved configuration as `settings.json` in `folder` (made if missing); returns the file's path."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(to_dict(config), indent=2) + "\n")
    return path


def sign(config: Any, folder: str | Path) -> None:
    """Save the configuration unless one is there. A program does it before it writes anything else, so that `claim` knows what it
    leaves if it is killed."""
    if not (Path(folder) / FILE).exists():
        save(config, folder)


def claim(config: Any, folder: str | Path, field: str, names: Iterable[str]) -> Path:
    """The folder for the results of a program, if writing there replaces only results of the same program.

    Args:
        config: configuration of the program.
        folder: a new folder, the folder of an earlier run of the program, or a folder without files of these names.
        field: name of the configuration's field with this folder, for messages.
        names: patterns of the files written beside `settings.json`.

    Raises:
        ValueError: the folder is not on this machine, is a file, holds a model, or holds files of these names that no earlier
            run of the program has written.
    """
    path = files.local(folder, field)
    advice = "give another folder; nothing is replaced there"
    if path.exists() and not path.is_dir():
        raise ValueError(f"{field}: {folder} is a file; give a folder")
    if found := files.model_in(path):
        raise ValueError(f"{field}: {folder} holds a model ({found}); {advice}")
    taken = sorted(str(file.relative_to(path)) for name in (FILE, *names) for file in path.glob(name))
    known = {entry.name for entry in dataclasses.fields(config)}
    # Versions of a program differ in some fields, programs in most. Earlier versions called the file config.json.
    saved = files.read_json(path / FILE).keys() or files.read_json(path / "config.json").keys()
    if taken and not (saved and (saved <= known or known <= saved)):
        raise ValueError(f"{field}: {folder} holds {taken[0]}, which no earlier run of this program has left; {advice}")
    return path


def _is_class(name: str) -> bool:
    return name.rpartition(".")[2] == CLASS


def free_fields(config: Any, prefix: str = "") -> set[str]:
    """Dotted names of the fields (or whole groups) with the metadata `FREE`."""
    names = set()
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if field.metadata.get("free"):
            names.add(name)
        elif dataclasses.is_dataclass(value):
            names |= free_fields(value, name + ".")
    return names


def _defaults(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of the fields with plain defaults, fields of nested dataclasses included."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            found |= _defaults(value, name + ".")
        elif field.default is not dataclasses.MISSING:
            found[name] = to_dict(field.default)
    return found


def differences(config: Any, saved: Any) -> list[str]:
    """The differences, in fields that matter, between a configuration and the saved `to_dict` of another.

    Returns:
        One line per field: dotted name, saved value and present value. Left out are fields marked `FREE`, and classes and
        defaults that the saved configuration does not have yet, so that old runs can be resumed.
    """
    now, before, free = flatten(config), flatten(saved), free_fields(config)
    known = _defaults(config) | before
    names = [n for n in [*now, *(b for b in before if b not in now)] if now.get(n, "absent") != known.get(n, "absent")]
    names = [n for n in names if not any(n == f or n.startswith(f + ".") for f in free)]
    names = [n for n in names if not _is_class(n) or n in before]
    return [f"{n}: was {before.get(n, 'absent')!r}, is now {now.get(n, 'absent')!r}" for n in names]
