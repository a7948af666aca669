"""The reference of docs/api.md: every public name of `pars`, from its signature and docstring."""

import ast
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from typing import Any

SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:")
# Made by a function, never by their reader: their constructor says nothing.
MADE_ELSEWHERE = {
    "pars.Order",
    "pars.Policy",
    "pars.Ranker",
    "pars.Scorer",
    "pars.Simulation",
    "pars.Workload",
}
LINE = 96


def reference() -> str:
    """All public names but the version, in the order of `pars.__all__`."""
    import pars

    names = [name for name in pars.__all__ if not name.startswith("__")]
    return "\n\n".join(_entry(f"pars.{name}", getattr(pars, name)) for name in names)


def _entry(name: str, value: Any) -> str:
    """A heading, the signature, the docstring, and of a class its methods."""
    parts = [f"### {name}"]
    if inspect.isclass(value) and issubclass(value, Exception):
        return "\n\n".join([*parts, _prose(value)])
    if name not in MADE_ELSEWHERE:
        parts.append(f"```\n{_signature(name, value)}\n```")
    parts.append(_prose(value))
    if inspect.isclass(value):
        parts += [_method(name, member, it) for member, it in _methods(value)]
    return "\n\n".join(parts)


def _methods(value: type) -> list[tuple[str, Any]]:
    """Its own public methods and properties; what it has from `pars.Policy` stands there."""
    return [
        (name, it)
        for name, it in vars(value).items()
        if not name.startswith("_")
        if isinstance(it, classmethod | staticmethod | property) or inspect.isfunction(it)
        if (it.fget if isinstance(it, property) else getattr(it, "__func__", it)).__doc__
    ]


def _method(owner: str, name: str, it: Any) -> str:
    inner = it.fget if isinstance(it, property) else getattr(it, "__func__", it)
    if isinstance(it, property):
        head = f"{owner.removeprefix('pars.')}.{name}"
    else:
        head = _signature(f"{owner.removeprefix('pars.')}.{name}", inner)
    return f"```\n{head}\n```\n\n{_prose(inner)}"


def _signature(name: str, value: Any) -> str:
    """As one would type the call, with the annotations as the source has them."""
    if is_dataclass(value) or hasattr(value, "_fields"):
        parts, result = [_field(node) for node in _source(value).body if _is_field(node)], ""
    else:
        function = _source(value.__init__ if inspect.isclass(value) else value)
        parts, result = _parameters(function.args), ""
        if function.returns is not None and not inspect.isclass(value):
            result = f" -> {_plain(function.returns)}"
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= LINE:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])


def _source(value: Any) -> Any:
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and "init=False" not in ast.unparse(node)


def _field(node: Any) -> str:
    default = f" = {ast.unparse(node.value)}" if node.value is not None else ""
    return f"{ast.unparse(node.target)}: {_plain(node.annotation)}{default}"


def _parameters(arguments: ast.arguments) -> list[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    missing = [None] * (len(positional) - len(arguments.defaults))
    parts = [*map(_parameter, positional, [*missing, *arguments.defaults])]
    if positional and positional[0].arg in ("self", "cls"):
        del parts[0]
    if arguments.vararg is not None:
        parts.append(f"*{_parameter(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        parts.append("*")
    return [*parts, *map(_parameter, arguments.kwonlyargs, arguments.kw_defaults)]


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    annotation = "" if argument.annotation is None else f": {_plain(argument.annotation)}"
    return f"{argument.arg}{annotation}" + (f" = {ast.unparse(default)}" if default else "")


def _plain(annotation: ast.expr) -> str:
    """Without the quotes of a name that is defined later."""
    return ast.unparse(annotation).replace("'", "")


def _prose(value: Any) -> str:
    """A docstring as Markdown: its sections as lists, its indented examples as code."""
    lines = (inspect.getdoc(value) or "").splitlines()
    text: list[str] = []
    section = False
    for line in lines:
        if line in SECTIONS:
            section = True
            text += [f"**{line}**", ""]
        elif section and re.match(r" {4}\S", line):
            names, colon, told = line.strip().partition(": ")
            text.append(f"- `{names}`: {told}" if colon else f"- {line.strip()}")
        elif section and line.startswith("        "):
            text.append(f"  {line.strip()}")
        else:
            text.append(line)
    return "\n".join(text).strip()
