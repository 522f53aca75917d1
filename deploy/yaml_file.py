"""
YAML files that people write: unknown keys are refused with the nearest one, and every error carries file and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from deploy.errors import ConfigError, nearest

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """Refuses unknown keys, and says which key may have been meant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            fields = {field.alias or name: field for name, field in cls.model_fields.items()}
            for key in data:
                if key not in fields:
                    raise unknown_key(str(key), [name for name, field in fields.items() if not field.exclude])
        return data


def unknown_key(key: str, known: Iterable[str]) -> PydanticCustomError:
    """For a validator: the entry has no such key; the nearest one is named."""
    context = {"key": key, "suggestion": nearest(key, known)}
    return PydanticCustomError("unknown_key", "has no key '{key}'{suggestion}", context)


def text_of(path: Path, hint: str | None = None) -> str:
    """
    The text of a file.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: {reason}", hint, path=str(path)) from None


def validated(
    raw: Any, model: type[M], path: Path, expected: str, kinds: Mapping[str, tuple[str, ...]] | None = None
) -> M:
    """
    What `read` gave, as the model that describes the file.

    Args:
        expected: the keys that a file must have, for one that is no mapping at all.
        kinds: see `problem`.

    Raises:
        ConfigError: a value does not fit; every problem with its line.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path}:1: expected {expected}", path=str(path), line=1)
    try:
        return model.model_validate(raw)
    except RecursionError:
        raise ConfigError(f"{path}:1: an anchor holds itself", path=str(path), line=1) from None
    except ValidationError as error:
        problems = [problem(raw, dict(entry), path, kinds or {}) for entry in error.errors()]
        raise ConfigError("\n".join(problems), path=str(path)) from None


def read(text: str, path: Path) -> Any:
    """
    The content, whose mappings and lists know their lines.

    Raises:
        ConfigError: it is no YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = (error.problem_mark.line + 1) if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}", path=str(path), line=line) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = f"character #x{error.character:04x}: {error.reason}"
        raise ConfigError(f"{path}:{line}: not YAML: {reason}", path=str(path), line=line) from None


def problem(raw: Any, error: dict[str, Any], path: Path, kinds: Mapping[str, tuple[str, ...]]) -> str:
    """
    One validation error of pydantic as ``file:line: key: what is wrong``.

    Args:
        kinds: what ``kind`` may say, by the key whose value has it.
    """
    node, line, shown = raw, 1, ""
    for step in error["loc"]:
        # The tag of a union is part of pydantic's location, and not of the file.
        if isinstance(node, Mapping) and step in node:
            line = key_line(node, step, line)
            shown += f".{step}" if shown else str(step)
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            line = node.lc.item(step)[0] + 1  # type: ignore[attr-defined]
            shown += f"[{step}]"
        else:
            continue
        node = node[step]
    kind, context = error["type"], error.get("ctx", {})
    subject = shown or "the file"
    if kind == "unknown_key":
        if isinstance(node, Mapping) and context["key"] in node:
            line = key_line(node, context["key"], line)
        return f"{path}:{line}: {subject} has no key {context['key']!r}{context['suggestion']}"
    if kind == "missing":
        return f"{path}:{line}: {subject} needs the key {error['loc'][-1]!r}"
    if kind == "union_tag_not_found":
        *others, last = kinds[error["loc"][-1]]
        return f"{path}:{line}: {subject} needs the key 'kind': {', '.join(others)} or {last}"
    if kind == "union_tag_invalid":
        tags = kinds[error["loc"][-1]]
        return f"{path}:{line}: {subject}.kind is {context['tag']!r}{nearest(context['tag'], tags)}"
    value = error.get("input")
    shown_value = f" (got {value!r})" if isinstance(value, (str, int, float, bool)) else ""
    if kind == "literal_error" and isinstance(value, str):
        choices = [choice.strip(" '") for choice in context["expected"].replace(" or ", ",").split(",")]
        return f"{path}:{line}: {subject} is {value!r}{nearest(value, choices)}"
    return f"{path}:{line}: {subject}: {error['msg'][0].lower()}{error['msg'][1:]}{shown_value}"


def key_line(node: Any, key: Any, otherwise: int) -> int:
    """Line of a key in ruamel's CommentedMap; `otherwise` for one that came by a merge (``<<``)."""
    return int(node.lc.data[key][0]) + 1 if key in (node.lc.data or {}) else otherwise
