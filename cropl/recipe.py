"""Find, list, copy and merge recipes. No torch here: `cropl ls` must answer at once.

A recipe is a YAML file. The built-in ones ship inside the package as `cropl.recipes` and are named by their path
without the ending (`testbed/study`); anything else is a path. Overlays are merged from left to right, `--key value`
flags last, then `${...}` is resolved, so that an interpolation follows every override. As everywhere in this field,
dicts merge and lists replace.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cropl.errors import UsageError, check_keys, did_you_mean, nearest, one_line

ENDINGS = (".yaml", ".yml")


def folder() -> Path:
    """The folder of the built-in recipes: of the installed `cropl.recipes`, or `recipes/` of a source checkout."""
    spec = importlib.util.find_spec("cropl.recipes")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).resolve().parent.parent / "recipes"


def names(prefix: str = "") -> list[str]:
    """Names of the built-in recipes that start with `prefix`, sorted."""
    root = folder()
    found = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*") if path.suffix in ENDINGS)
    return sorted(name for name in found if name.startswith(prefix))


def find(name: str | Path) -> Path:
    """The file of a built-in recipe's name, or of a path. UsageError with "did you mean" when there is none."""
    text = str(name)
    if not text.endswith(ENDINGS):
        for ending in ENDINGS:
            built_in = folder() / f"{text}{ending}"
            if text and ".." not in Path(text).parts and built_in.is_file():
                return built_in
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if path.is_dir() and text:
        raise UsageError(f"recipe {text!r} is a folder; name one recipe (`cropl ls` lists the built-in ones)")
    known = names()
    bare = text.removesuffix(".yaml").removesuffix(".yml")
    # A name without its folder ("study") is the most common slip, and too far away for difflib.
    alike = [other for other in known if other.rpartition("/")[2] == bare.rpartition("/")[2]][:1]
    hint = did_you_mean(bare, known, 0.6) or did_you_mean(bare, alike, 0)
    if text.endswith(ENDINGS):
        raise UsageError(f"recipe {text!r}: no such file{hint}")
    raise UsageError(f"unknown recipe {text!r}{hint} (`cropl ls` lists the built-in ones; a path to a YAML works too)")


def describe(name: str | Path) -> str:
    """The first comment line of a recipe: what it is."""
    for line in find(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and line.strip("# "):
            return line.strip("# ").strip()
        if line.strip():
            break
    return ""


def copy(name: str | Path, destination: str | Path, clobber: bool = False) -> Path:
    """Copy a recipe to a file or into a folder; UsageError when the file exists, unless `clobber`."""
    source, target = find(name), Path(destination).expanduser()
    if target.is_dir() or str(destination).endswith("/"):
        target = target / source.name
    elif target.suffix not in ENDINGS:
        target = target.with_name(target.name + source.suffix)
    if target.exists() and not clobber:
        raise UsageError(f"{target} exists; give another name, or --clobber to overwrite it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def resolve_config_flags(args: Sequence[str]) -> list[str]:
    """`args` with the value of every `-c`, `--config` replaced by the file of the training recipe that it names."""
    resolved: list[str] = []
    pending = False
    for arg in args:
        if pending:
            arg = str(expect("model", arg))
        elif arg.startswith(("--config=", "-c=")):
            flag, _, value = arg.partition("=")
            arg = f"{flag}={expect('model', value)}"
        pending = not pending and arg in ("-c", "--config")
        resolved.append(arg)
    return resolved


def parse_flags(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split `-c NAME ... --key value --a.b=value` into recipe names and a dict of dotted overrides.

    Values are read as YAML ("3" is a number, "[192,64]" a list, "null" nothing); a flag without a value is true. A
    hyphen in the first part of a key is an underscore (`--max-bad`); what follows may be a name out of the data, and
    keeps its hyphens (`--caps.photos-captions`).
    """
    recipes: list[str] = []
    overrides: dict[str, Any] = {}
    rest = list(args)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("-") or flag in ("-", "--"):
            raise UsageError(f"unexpected argument {flag!r}; recipes are written -c NAME, overrides --key value")
        name, separator, value = flag.partition("=")
        if not separator and rest and not rest[0].startswith("--") and rest[0] != "-c":
            value, separator = rest.pop(0), "="
        if name in ("-c", "--config"):
            if not separator:
                raise UsageError(f"{name} needs the name or the path of a recipe")
            recipes.append(value)
        elif name.startswith("--"):
            first, *others = name[2:].split(".")
            key = ".".join([first.replace("-", "_"), *others])
            overrides[key] = _value(value, name) if separator else True
        else:
            raise UsageError(f"unknown flag {flag!r}; overrides are written --key value")
    return recipes, overrides


def _value(text: str, name: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{name} {text!r} is not a value: {str(error).splitlines()[0]}") from None


def load(recipes: Sequence[str | Path], overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Merge recipes (names or paths, left to right) and dotted overrides, resolve `${...}`; plain dicts and lists.

    UsageError for an unknown recipe, a file that is not a YAML mapping, an interpolation that does not resolve.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    merged: Any = OmegaConf.create({})
    where = "recipe"
    try:
        for name in recipes:
            path = find(name)
            where = str(path)
            part = OmegaConf.load(path)
            word = part and ":" not in path.read_text(encoding="utf-8")  # it would be taken for a key
            if not OmegaConf.is_dict(part) or word:
                raise UsageError(f"{path}: a recipe is a mapping of keys to values, this file is not")
            merged = OmegaConf.merge(merged, part)
        for key, value in (overrides or {}).items():
            where = f"--{key}"
            if key.startswith("vars.") and OmegaConf.select(merged, key) is None:
                # Nothing would ever read a variable that the recipe does not have.
                known = [f"vars.{name}" for name in merged.get("vars") or {}]
                raise UsageError(f"unknown key {key!r}{nearest(key, known, 'this recipe has')}")
            OmegaConf.update(merged, key, value, merge=True, force_add=True)
        where = "recipe"
        plain = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: {' '.join(str(error).split())}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


KINDS = {
    "sources": ("data recipe", "cropl shards build -c"),
    "arms": ("study", "cropl evaluate -c"),
    "model": ("training recipe", "cropl fit -c"),
    "scorer": ("benchmark", "cropl evaluate -c STUDY --benchmarks"),
    "max_pixels": ("calibration", "cropl calibrate -c"),
}
"""By the key that tells (the first that a recipe has): what it is, and the command that runs it."""


def kind_of(content: object) -> str | None:
    """The kind of a recipe with this content: a key of `KINDS`; None if it has none of them, as an overlay may."""
    return next((key for key in KINDS if isinstance(content, Mapping) and key in content), None)


def expect(kind: str, name: str | Path) -> Path:
    """The file of a recipe; UsageError if it is of another kind than this key of `KINDS`, naming the command for it."""
    import yaml

    path = find(name)
    try:
        found = kind_of(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError):
        return path  # whoever loads it says what is wrong
    if found is not None and found != kind:
        what, command = KINDS[found]
        raise UsageError(f"{name} is a {what}: {command} {name}")
    return path


def load_object(path: str) -> Any:
    """The class or function with a dotted path; UsageError says what is missing."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        first = module.partition(".")[0]
        here = isinstance(error, ModuleNotFoundError) and error.name == first
        hint = "; a module of the working directory is found with PYTHONPATH=." if here else ""
        raise UsageError(f"class_path {path!r} cannot be imported: {error}{hint}") from None
    except (Exception, SystemExit) as error:  # whatever somebody else's module does
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(f"class_path {path!r} cannot be imported: {reason}") from error


def instantiate(spec: Any, where: str) -> Any:
    """What `{class_path: ..., init_args: {...}}` describes; UsageError names `where` and the wrong key or argument."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("class_path"), str):
        raise UsageError(f"{where}: needs a class_path and init_args")
    check_keys(dict(spec), ("class_path", "init_args"), where)
    made, arguments = load_object(spec["class_path"]), dict(spec.get("init_args") or {})
    parameters = inspect.signature(made).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        check_keys(arguments, list(parameters), f"{where}: {spec['class_path']}")
    try:
        return made(**arguments)
    except TypeError as error:
        raise UsageError(f"{where}: {spec['class_path']}: {error}") from None


def label(recipes: Sequence[str | Path]) -> str:
    """What a result row calls its recipe: the names joined by '+', a path by its file name."""
    labels, root = [], folder().resolve()
    for name in recipes:
        path = find(name).resolve()
        inside = path.is_relative_to(root)
        labels.append(path.relative_to(root).with_suffix("").as_posix() if inside else path.name)
    return "+".join(labels)
