"""From what is typed to a study and its options. The parser is made from the settings types in `options`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin

import cyclopts

from .. import tasks
from ..validation import SettingsField, fields_of
from . import studyfile
from .options import FIT, Options, checked, given
from .studies import STUDIES, Study

PROGRAM = "python -m fisherdyn.sweep"


@dataclass(frozen=True)
class Command:
    """A study, and the options that it is run with."""

    study: Study
    options: Options


def parse(argv: Sequence[str] | None = None) -> Command | None:
    """The command that is typed; None where help was asked for, which is printed then.

    Raises:
        ValueError: the arguments make no command; one line that names the option.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    studies = dict(STUDIES)
    if argv and argv[0].endswith(studyfile.SUFFIXES):
        studies[argv[0]] = studyfile.read(Path(argv[0]))
    app = cyclopts.App(
        PROGRAM,
        help="Studies of many training runs, resumable. A study is one of those below, or a YAML or Python file. "
        "Repeat a command to go on where it stopped.",
        help_format="plaintext",
        version_flags=(),
    )
    for name, study in studies.items():
        app.command(_Parser(study), name=name, help=f"{study.about}, for each seed.")
    if not argv:
        raise ValueError(f"expected a study: choose one of {', '.join(STUDIES)}, or a YAML or Python file")
    try:
        return app(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        raise ValueError(" ".join(str(error).split())) from error


class _Parser:
    """Takes a study's options as keyword arguments: cyclopts reads their names, types and help from the signature."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.known = {**fields_of(cast(type, study.options)), **FIT}
        parameters = [self._parameter(field) for field in self.known.values() if field.name != "fit"]
        self.__signature__ = Signature(parameters)
        self.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}

    def _parameter(self, field: SettingsField) -> Parameter:
        default = self.study.defaults.get(field.name, None if field.name in FIT else field.default)
        kind = _typed(field.kind)
        described = cyclopts.Parameter(
            help=field.help.replace("TASKS", ", ".join(tasks.REGISTRY)),
            converter=_whole if kind is int else None,
            negative=None if default is True or field.name in FIT else (),
            show_default=default not in (None, False, ()),
        )
        kind = kind | None if default is None else kind  # cyclopts checks defaults too
        return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, described])

    def __call__(self, **typed: Any) -> Command:
        values = {**self.study.defaults, **checked(typed, self.known)}
        fit = {name: values.pop(name) for name in FIT if name in values}
        return Command(self.study, self.study.options(**values, fit=fit))


def _typed(kind: Any) -> Any:
    """The type that a text on the command line is read as. Lists are read as texts, which `options` takes apart."""
    kind = given(kind)
    if get_origin(kind) in (Union, UnionType, Annotated):
        return _typed(get_args(kind)[0])
    return list[str] if get_origin(kind) in (list, tuple) else kind


def _whole(_: Any, tokens: Sequence[cyclopts.Token]) -> int:
    """A whole number: cyclopts itself would make 2 of "2.5"."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"expected a whole number, got {tokens[0].value!r}") from None
