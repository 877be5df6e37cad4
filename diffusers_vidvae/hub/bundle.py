r"""Writes a module and what it needs from this package into one source file that imports only other libraries.

Remote code of diffusers is downloaded file by file and lies in one folder for all repositories of a machine, so each
file must stand alone. Of the modules that are imported at the top of a module, those definitions that are used are
written in front of it. What a function imports when it is called stays an import, of the installed package: features
such as reading files, which a stand-alone file does without.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from graphlib import TopologicalSorter


PACKAGE = "diffusers_vidvae"

_OPTIONAL_PARTS = '''
def _optional_parts(module: str, *names: str):
    """Parts of the package diffusers-vidvae that this file does without until they are called for."""
    import importlib

    try:
        package = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{', '.join(names)} of {module}: pip install diffusers-vidvae") from error
    parts = [getattr(package, name) for name in names]
    return parts if len(parts) > 1 else parts[0]
'''


@dataclass
class _Statement:
    """A statement at the top of a module: its text, what it defines and which names it reads."""

    text: str
    defines: set[str]
    reads: set[str]


@dataclass
class _Module:
    name: str
    docstring: str
    statements: list[_Statement] = field(default_factory=list)
    libraries: dict[str, str] = field(default_factory=dict)
    package_names: dict[str, tuple[str, str]] = field(default_factory=dict)

    def definition(self, name: str) -> _Statement | None:
        return next((statement for statement in self.statements if name in statement.defines), None)


def bundle(module: str, stand_ins: Mapping[str, str] | None = None, also: Sequence[str] = ()) -> str:
    r"""Source of a module with what it imports from this package written in front of it.

    Args:
        module: Full name of the module.
        stand_ins: Import statements that replace names of this package, by name.
        also: Full names of modules to write in front of it, too.

    Raises:
        ValueError: Two modules define different things under one public name, or import this package in another way
            than `from diffusers_vidvae... import name`.
    """
    stand_ins = dict(stand_ins or {})
    root = _read(module)
    chosen: dict[str, list[_Statement]] = {}
    libraries: dict[str, str] = {}
    for part in [*map(_read, also), root]:
        for statement in part.statements:
            _choose(part, statement, chosen, libraries, stand_ins)
    modules = _modules_in_order(chosen, root, stand_ins)
    texts = {name: "".join(part.text for part in _in_order(_read(name), chosen[name])) for name in modules}
    texts = _with_private_names_apart(texts, {name: _definitions(parts) for name, parts in chosen.items()})

    code = "".join(texts.values())
    imports = sorted(set(libraries.values()), key=lambda line: (line.split()[1].startswith("diffusers"), line))
    parts = [root.docstring, "from __future__ import annotations\n", "\n".join(imports)]
    if "_optional_parts(" in code:
        parts.append(_OPTIONAL_PARTS)
    return "\n".join(parts) + "\n\n\n" + code.strip() + "\n"


def _choose(
    module: _Module,
    statement: _Statement,
    chosen: dict[str, list[_Statement]],
    libraries: dict[str, str],
    stand_ins: Mapping[str, str],
) -> None:
    """Takes a statement and everything it needs."""
    if any(statement is taken for taken in chosen.get(module.name, ())):
        return
    chosen.setdefault(module.name, []).append(statement)
    for name in sorted(statement.reads):
        if name in stand_ins and name in module.package_names:
            _add_library(libraries, name, stand_ins[name], module.name)
        elif name in module.package_names:
            source, needed = _resolve(*module.package_names[name])
            _choose(source, needed, chosen, libraries, stand_ins)
        elif name in module.libraries:
            _add_library(libraries, name, module.libraries[name], module.name)
        elif (definition := module.definition(name)) is not None:
            _choose(module, definition, chosen, libraries, stand_ins)


def _add_library(libraries: dict[str, str], name: str, line: str, module: str) -> None:
    if libraries.setdefault(name, line) != line:
        raise ValueError(f"{module} has {line!r} where another module has {libraries[name]!r}: name one otherwise.")


def _resolve(module: str, name: str) -> tuple[_Module, _Statement]:
    """Module and statement that define a name, through the `__init__` files that pass it on."""
    source = _read(module)
    statement = source.definition(name)
    if statement is not None:
        return source, statement
    if name not in source.package_names:
        raise ValueError(f"{module} does not define {name} in a statement of its own.")
    return _resolve(*source.package_names[name])


@cache
def _read(name: str) -> _Module:
    imported = importlib.import_module(name)
    is_package = hasattr(imported, "__path__")
    source = inspect.getsource(imported)
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    module = _Module(name, f"{ast.unparse(tree.body[0])}\n" if ast.get_docstring(tree) else "")
    last_line = tree.body[0].end_lineno or 0 if module.docstring else 0
    for node in _top_statements(tree.body[1:] if module.docstring else tree.body, module, is_package):
        # Comments above a statement and its decorators belong to it.
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        above = [line.lstrip() for line in lines[last_line : first - 1] if line.lstrip().startswith("#")]
        text = "".join(above) + textwrap.dedent("".join(lines[first - 1 : node.end_lineno]))
        last_line = node.end_lineno or last_line
        text = "\n\n" + _without_package_imports(text, node, name)
        module.statements.append(_Statement(text, set(_defined(node)), _reads(node)))
    return module


def _top_statements(body: list[ast.stmt], module: _Module, is_package: bool) -> Iterator[ast.stmt]:
    """Statements at the top of a module, and those in the place of what is there for type checkers only."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            _read_import(module, node, is_package)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for inner in node.body:
                if isinstance(inner, (ast.Import, ast.ImportFrom)):
                    _read_import(module, inner, is_package, needed_at_run_time=False)
            yield from _top_statements(node.orelse, module, is_package)
        else:
            yield node


def _read_import(
    module: _Module, node: ast.Import | ast.ImportFrom, is_package: bool, needed_at_run_time: bool = True
) -> None:
    for alias in node.names:
        bound = alias.asname or alias.name.split(".")[0]
        renamed = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
        if isinstance(node, ast.Import):
            if alias.name.split(".")[0] == PACKAGE:
                raise ValueError(f"{module.name}: only `from {PACKAGE}... import name` can be written into a file.")
            module.libraries[bound] = f"import {renamed}"
        elif node.module == "__future__":
            continue
        elif (source := _package_module(node, module.name, is_package)) is not None:
            if alias.asname and alias.asname != alias.name:
                raise ValueError(
                    f"{module.name}: {alias.name} of {source} must keep its name to be written into a file."
                )
            if needed_at_run_time:
                module.package_names[bound] = (source, alias.name)
        else:
            module.libraries[bound] = f"from {node.module} import {renamed}"


def _package_module(node: ast.ImportFrom, module: str, is_package: bool) -> str | None:
    """Full name of the module of this package that a statement imports from; None for other libraries."""
    if node.level:
        base = module.split(".")
        base = base[: len(base) - node.level + is_package]
        return ".".join([*base, *([node.module] if node.module else [])])
    return node.module if node.module and node.module.split(".")[0] == PACKAGE else None


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def _definitions(statements: list[_Statement]) -> set[str]:
    return set().union(*(statement.defines for statement in statements))


def _reads(node: ast.stmt) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} - set(_defined(node))


def _modules_in_order(
    chosen: Mapping[str, list[_Statement]], root: _Module, stand_ins: Mapping[str, str]
) -> Sequence[str]:
    """Every module after those that its chosen statements need, the root last."""
    sorter = TopologicalSorter({root.name: sorted(chosen.keys() - {root.name})})
    for name, statements in chosen.items():
        imported = _read(name).package_names
        reads = set().union(*(statement.reads for statement in statements)) & imported.keys() - stand_ins.keys()
        sorter.add(name, *sorted({_resolve(*imported[read])[0].name for read in reads}))
    return list(sorter.static_order())


def _in_order(module: _Module, statements: list[_Statement]) -> list[_Statement]:
    return [statement for statement in module.statements if any(statement is chosen for chosen in statements)]


def _without_package_imports(text: str, node: ast.stmt, module: str) -> str:
    """Turns imports of this package inside functions into calls that may find it missing."""
    lines = text.splitlines(keepends=True)
    offset = len(lines) - (node.end_lineno or node.lineno)  # from line numbers of the module to those of the text
    imports = [inner for inner in ast.walk(node) if isinstance(inner, ast.ImportFrom)]
    for inner in sorted(imports, key=lambda inner: -inner.lineno):
        source = _package_module(inner, module, False)
        if source is None:
            continue
        names = [alias.name for alias in inner.names]
        call = f"_optional_parts({source!r}, {', '.join(map(repr, names))})".replace("'", '"')
        indent = " " * (inner.col_offset - node.col_offset)
        lines[inner.lineno - 1 + offset : (inner.end_lineno or inner.lineno) + offset] = [
            f"{indent}{', '.join(names)} = {call}\n"
        ]
    return "".join(lines)


def _with_private_names_apart(texts: dict[str, str], defined: dict[str, set[str]]) -> dict[str, str]:
    """Renames private definitions that two modules share by name; public ones must not clash."""
    owners: dict[str, list[str]] = {}
    for module, names in defined.items():
        for name in names:
            owners.setdefault(name, []).append(module)
    texts = dict(texts)
    for name, modules in owners.items():
        for module in modules[:-1]:
            if not name.startswith("_"):
                raise ValueError(f"{' and '.join(modules)} both define {name}, which one file cannot hold.")
            apart = f"{name}_of_{module.rsplit('.', 1)[-1]}"
            texts[module] = re.sub(rf"(?<![\w.]){name}(?!\w)", apart, texts[module])
    return texts
