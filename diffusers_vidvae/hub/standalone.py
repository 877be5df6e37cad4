r"""Repositories whose source files travel with the weights, so that they run on diffusers alone.

Every module of this package that the pipeline needs becomes one file with a name of its own and a version, because
all remote code of a machine shares one folder. Models and schedulers stand beside their weights as files that import
only torch and diffusers; `factored_attention.py` is written into the models that use it. The pipeline's modules lie
at the root and import each other relatively.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
from collections.abc import Iterable
from pathlib import Path

from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

from .cards import build_model_card


PACKAGE = "diffusers_vidvae"
EXPORT_VERSION = 1

_SHARED_MODULES = (f"{PACKAGE}.models.factored_attention",)


def export_standalone(saveable: DiffusionPipeline | ModelMixin | SchedulerMixin, folder: str | os.PathLike[str]):
    r"""Saves a pipeline, model or scheduler together with its source.

    A pipeline then loads with `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` and a model with
    `AutoModel.from_pretrained(folder, trust_remote_code=True)`, with diffusers and without this package; the classes
    of this package load the folder too, and do not run the files in it. Saving what was loaded from such a folder by
    remote code does not copy the files: export again with this package.

    Args:
        saveable: What to save; classes of other libraries may be among a pipeline's components.
        folder: Where to; made if absent, must not hold anything yet.

    Raises:
        ValueError: The folder is not empty, or the class is not one of this package.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: a standalone repository is written to a folder of its own.")
    _require_own_class(type(saveable))
    saveable.save_pretrained(folder)
    if isinstance(saveable, DiffusionPipeline):
        _export_pipeline(saveable, folder)
    else:
        _export_component(type(saveable), folder)
        if isinstance(saveable, ModelMixin):
            _add_auto_map(type(saveable), folder / "config.json")
    build_model_card(folder, standalone=True).save(folder / "README.md")


def _require_own_class(cls: type):
    if cls.__module__.split(".")[0] != PACKAGE:
        raise ValueError(f"{cls.__name__} of {cls.__module__} is not a class of {PACKAGE}, whose source could travel.")


def _export_pipeline(pipeline: DiffusionPipeline, folder: Path):
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text(encoding="utf-8"))
    for name, component in pipeline.components.items():
        if type(component).__module__.split(".")[0] == PACKAGE:
            module = _export_component(type(component), folder / name)
            index[name] = [module, type(component).__name__]
            if isinstance(component, ModelMixin):
                _add_auto_map(type(component), folder / name / "config.json")
    index["_class_name"] = [exported_name(type(pipeline).__module__), type(pipeline).__name__]
    for file_name, source in export_modules(type(pipeline).__module__).items():
        (folder / file_name).write_text(source, encoding="utf-8")
    index_file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _export_component(cls: type, folder: Path) -> str:
    name = exported_name(cls.__module__)
    (folder / f"{name}.py").write_text(self_contained_source(cls.__module__), encoding="utf-8")
    return name


def _add_auto_map(cls: type, config_file: Path):
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModel": f"{exported_name(cls.__module__)}.{cls.__name__}"}
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def exported_name(module: str) -> str:
    r"""Name of a module's file once exported: `diffusers_vidvae.media.reader` becomes `vidvae_media_reader_v1`."""
    path = module.removeprefix(PACKAGE).lstrip(".").replace(".", "_")
    return f"vidvae_{path}_v{EXPORT_VERSION}" if path else f"vidvae_v{EXPORT_VERSION}"


def self_contained_source(module: str) -> str:
    r"""Source of a model or scheduler module with what it imports from this package written into it."""
    source, tree = _read(module)
    inlined = []
    replacements: list[tuple[ast.stmt, str]] = []
    for node, imported in _package_imports(tree, module):
        if imported not in _SHARED_MODULES:
            raise ValueError(f"{module} imports {imported}; a model or scheduler may share {_SHARED_MODULES} only.")
        inlined.append(imported)
        replacements.append((node, ""))
    source = _replace(source, replacements)
    for shared in inlined:
        shared_source, shared_tree = _read(shared)
        body = _replace(shared_source, [(node, "") for node in _prologue(shared_tree)])
        _, rest = _split_after_future_import(source)
        source = source.removesuffix(rest) + "\n" + body.strip() + "\n\n" + rest
    return source


def export_modules(module: str) -> dict[str, str]:
    r"""File names and sources of a pipeline's module and of all it imports from this package, directly or not."""
    sources: dict[str, str] = {}
    needed: dict[str, set[str]] = {}
    queue = [module]
    while queue:
        current = queue.pop()
        if current in needed:
            continue
        source, tree = _read(current)
        imports = list(_package_imports(tree, current))
        needed[current] = {imported for _, imported in imports}
        sources[current] = _replace(source, [(node, _relative_import(node, imported)) for node, imported in imports])
        queue.extend(needed[current])
    # diffusers copies the files that the pipeline's own file names, and not those that they name in turn.
    others = sorted(exported_name(name) for name in needed if name != module)
    head, rest = _split_after_future_import(sources[module])
    listing = "".join(f"    from .{name} import __name__ as _{name}  # noqa: F401\n" for name in others)
    sources[module] = f"{head}\nfrom typing import TYPE_CHECKING\n\n\nif TYPE_CHECKING:\n{listing}\n{rest}"
    return {f"{exported_name(name)}.py": source for name, source in sources.items()}


def _read(module: str) -> tuple[str, ast.Module]:
    source = inspect.getsource(importlib.import_module(module))
    return source, ast.parse(source)


def _package_imports(tree: ast.Module, module: str) -> Iterable[tuple[ast.ImportFrom, str]]:
    """Yields the statements, at any depth, that import from this package, with the module they import from."""
    is_package = hasattr(importlib.import_module(module), "__path__")
    parents = module.split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
            raise ValueError(f"{module} line {node.lineno}: only `from {PACKAGE}... import ...` can be exported.")
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = parents[: len(parents) - node.level + is_package]
            yield node, ".".join([*base, *([node.module] if node.module else [])])
        elif node.module and node.module.split(".")[0] == PACKAGE:
            yield node, node.module


def _relative_import(node: ast.ImportFrom, imported: str) -> str:
    names = ", ".join(alias.name + (f" as {alias.asname}" if alias.asname else "") for alias in node.names)
    return f"from .{exported_name(imported)} import {names}"


def _prologue(tree: ast.Module) -> list[ast.stmt]:
    """Docstring and future import of a module, which cannot stand in the middle of another."""
    prologue: list[ast.stmt] = []
    for index, node in enumerate(tree.body):
        is_docstring = index == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_docstring or isinstance(node, ast.ImportFrom) and node.module == "__future__":
            prologue.append(node)
    return prologue


def _split_after_future_import(source: str) -> tuple[str, str]:
    prologue = _prologue(ast.parse(source))
    last = prologue[-1].end_lineno if prologue else 0
    lines = source.splitlines(keepends=True)
    return "".join(lines[:last]), "".join(lines[last:])


def _replace(source: str, replacements: Iterable[tuple[ast.stmt, str]]) -> str:
    """Puts texts in the place of statements, each of which fills its lines alone."""
    lines = source.splitlines(keepends=True)
    for node, text in sorted(replacements, key=lambda pair: -pair[0].lineno):
        new_lines = [" " * node.col_offset + text + "\n"] if text else []
        lines[node.lineno - 1 : node.end_lineno] = new_lines
    return "".join(lines)
