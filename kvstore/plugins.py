"""A user's own classes, named as `package.module:Class`."""

from __future__ import annotations

from importlib import import_module

METHOD = "key"
"""What every policy has: of what it is given, the one with the lowest key is taken."""


def load(path: str, kind: str) -> type:
    """The class that `path` names; `kind` is what it is wanted as, for the errors.

    Raises ValueError that says what is wrong: no colon, a module that cannot be imported and why, no such class, or
    one without a method `key`.
    """
    module_name, colon, class_name = path.partition(":")
    if not colon or not module_name or not class_name:
        raise ValueError(f"{kind} {path!r}: expected package.module:Class")
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever its author wrote at the top of it
        raise ValueError(f"{kind} {path!r}: cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        what = "no such class" if found is None else f"{class_name} is a {type(found).__name__}, expected a class"
        raise ValueError(f"{kind} {path!r}: {what} in {module_name!r}")
    if not callable(getattr(found, METHOD, None)):
        raise ValueError(f"{kind} {path!r}: {class_name} has no method {METHOD!r}")
    return found


def make(path: str, kind: str) -> object:
    """An instance of the class that `path` names, made without arguments. Raises ValueError as `load` does."""
    found = load(path, kind)
    try:
        return found()
    except Exception as error:
        raise ValueError(f"{kind} {path!r}: cannot be made: {type(error).__name__}: {error}") from error
