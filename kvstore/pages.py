"""Which pages of the pool are free. Pages are handed out in runs as long as the free space allows."""

from __future__ import annotations

from bisect import bisect_left, insort


class OutOfPages(Exception):
    """Fewer pages are free than asked for. Nothing was taken."""


class PageAllocator:
    """Free pages as maximal runs, so that a message mostly lies in one piece and is read without a gather.

    `allocate` takes the smallest run that fits, or else whole runs, longest first.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise ValueError(f"num_pages is {num_pages}, expected 1 or more")
        self.num_pages = num_pages
        self.num_free = num_pages
        self._runs: list[tuple[int, int]] = [(0, num_pages)]  # (first page, length), by first page, never adjacent

    def allocate(self, count: int) -> list[int]:
        """`count` page numbers. Raises OutOfPages."""
        if count > self.num_free:
            raise OutOfPages(f"{count} pages asked for, {self.num_free} free")
        pages: list[int] = []
        while len(pages) < count:
            missing = count - len(pages)
            fitting = [run for run in self._runs if run[1] >= missing]
            first, length = min(fitting, key=lambda run: run[1]) if fitting else max(self._runs, key=lambda run: run[1])
            self._runs.remove((first, length))
            taken = min(length, missing)
            pages.extend(range(first, first + taken))
            if taken < length:
                insort(self._runs, (first + taken, length - taken))
        self.num_free -= count
        return pages

    def free(self, pages: list[int]) -> None:
        """Gives pages back. Raises ValueError for a page that is free already or does not exist."""
        for first, length in _as_runs(sorted(pages)):
            self._free_run(first, length)

    def _free_run(self, first: int, length: int) -> None:
        if first < 0 or first + length > self.num_pages:
            raise ValueError(f"pages {first}..{first + length - 1} are not in the pool of {self.num_pages}")
        at = bisect_left(self._runs, (first, 0))
        before = self._runs[at - 1] if at > 0 else None
        after = self._runs[at] if at < len(self._runs) else None
        if (before and before[0] + before[1] > first) or (after and after[0] < first + length):
            raise ValueError(f"pages {first}..{first + length - 1} are free already")
        self.num_free += length
        if before and before[0] + before[1] == first:
            self._runs.remove(before)
            first, length = before[0], before[1] + length
        if after and first + length == after[0]:
            self._runs.remove(after)
            length += after[1]
        insort(self._runs, (first, length))

    def check_integrity(self) -> None:
        """Raises AssertionError if runs overlap, touch or do not add up."""
        assert sum(length for _, length in self._runs) == self.num_free
        for (first, length), (following, _) in zip(self._runs, self._runs[1:], strict=False):
            assert first + length < following


def _as_runs(pages: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and runs[-1][0] + runs[-1][1] == page:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((page, 1))
    return runs
