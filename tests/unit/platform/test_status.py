"""What `laban status` prints of the workers."""

from __future__ import annotations

import pytest

from laban.cluster.records import ClusterStatus, WorkerStatus
from laban.cluster.render_cluster import print_status


def test_status_names_device_dtype_and_attention_of_each_worker(capsys: pytest.CaptureFixture[str]) -> None:
    def worker(worker_id: str, device: str, dtype: str, attention: str) -> WorkerStatus:
        return WorkerStatus(
            worker_id, "e", True, device, dtype, attention, 64, 1000, 123_456, 456_789, 9, 16, 131_072, 7
        )

    workers = (
        worker("worker-0", "2 x cuda:0", "bfloat16", "fused-triton+flash-attention-3"),
        worker("worker-1", "cpu", "float32", "torch-cpu-flash"),
    )
    print_status(ClusterStatus("0.1.0", True, "Llama", 131_072, workers, 0, 0, 1.0))
    first, second, *_ = (line for line in capsys.readouterr().out.splitlines() if "worker-" in line)
    assert "2 x cuda:0, bfloat16" in first
    assert "fused-triton+flash-attention-3" in first  # on one line: nothing is cut off or wrapped
    assert "456780 of 456789 pages" in first
    assert "cpu, float32" in second
    assert "torch-cpu-flash" in second
