"""How much memory this machine has for us. Never imports torch."""

from __future__ import annotations

from pathlib import Path


def memory_bytes(root: Path = Path("/")) -> int:
    """Of this machine, or what the control groups of this process leave of it."""
    limits = [_total_memory(root)]
    for path in _limit_files(root):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # "max" is none
            limits.append(int(text))
    return min(limits)


def _total_memory(root: Path) -> int:
    lines = (root / "proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))


def _limit_files(root: Path) -> list[Path]:
    """Of both versions of control groups, of this process's own group and all those above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    files = []
    for line in ("0::/", ":memory:/", *lines):
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = Path(group.strip("/")).parts
        files += [base.joinpath(*parts[:depth], name) for depth in range(len(parts) + 1)]
    return files
