"""Values of options: widths, parts with their own options, and files of settings.

    --likelihood Categorical:num_categories=17      a part's name, then its options
    --settings run.toml                             options by their long names, in TOML or JSON

What the command line gives overrides the file.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

import typer

from pyrovae.errors import ConfigError


def widths(text: str) -> tuple[int, ...]:
    """Parse hidden widths: "300,100" → (300, 100).

    Example:
        >>> widths("300,100")
        (300, 100)
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of widths such as 200 or 300,300.")
    return tuple(map(int, parts))


def choice(text: str) -> str | dict[str, Any]:
    """Parse a part for `build`: a name, or a name and options, whose values are JSON or words.

    Example:
        >>> choice("VampPrior"), choice("Categorical:num_categories=17")
        ('VampPrior', {'name': 'Categorical', 'num_categories': 17})
    """
    name, _, rest = text.partition(":")
    if not rest:
        return name
    options = {}
    for item in _split(rest):
        key, equals, value = item.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ConfigError(
                f"{text!r}: {item.strip()!r} is not an option of the form key=value.\n"
                "Write for example GaussianMixture:num_components=20,learn_weights=true."
            )
        options[key.strip()] = _value(value)
    return {"name": name, **options}


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def name_of(text: str) -> str:
    """Return the name of a part without its options.

    Example:
        >>> name_of("Categorical:num_categories=17")
        'Categorical'
    """
    return text.partition(":")[0]


def from_settings_file(context: typer.Context, path: Path) -> dict[str, Any]:
    """Return the options in a file, parsed as those of the command line, which override them.

    Raises:
        ConfigError: the file is not TOML or JSON, an option is unknown, or a value is invalid.
    """
    known = {param.name: param for param in context.command.params}
    known = {name: p for name, p in known.items() if name not in ("settings", "resume")}
    options = {}
    for key, value in _read(path).items():
        name = key.replace("-", "_")
        if name not in known:
            from pyrovae.checks import nearest

            near = nearest(name, known)
            hint = f" Did you mean {near!r}?" if near else ""
            raise ConfigError(
                f"{path}: {key!r} is not an option of `pyrovae fit`.{hint}\n"
                f"Options: {', '.join(sorted(known))}."
            )
        is_given = context.get_parameter_source(name).name == "COMMANDLINE"
        if value is not None and not is_given:
            options[name] = _parsed(context, known[name], value, path)
    return options


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(
            f"{path} is not {kind}: {str(error)[:200]}.\n"
            'Write one option a line, such as latent_dim = 10 or prior = "VampPrior".'
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}, but it needs options by name.")
    return found


def _parsed(context: typer.Context, param: Any, value: Any, path: Path) -> Any:
    try:
        return param.process_value(context, _as_text(value))
    except typer.BadParameter as error:
        raise ConfigError(f"{path}: {param.name} = {value!r}: {error.message}") from None


def _as_text(value: Any) -> str:
    """Return a value of a file as it is written on the command line."""
    if isinstance(value, dict):
        options = {key: json.dumps(item) for key, item in value.items() if key != "name"}
        rest = ",".join(f"{key}={text}" for key, text in options.items())
        return f"{value.get('name', '')}{':' if rest else ''}{rest}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)
