"""Which devices each worker gets."""

import os

from spin_core.runtime import devices


def test_each_worker_gets_its_own_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert devices.environments(2, 3) == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in devices.environments(4, 3)] == ["2", "5", "7", "2"]
    assert devices.environments(2, 3, each=2) == [{"CUDA_VISIBLE_DEVICES": "2,5"}] * 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [env["CUDA_VISIBLE_DEVICES"] for env in devices.environments(2, 4, each=2)] == ["0,1", "2,3"]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert devices.environments(2, 0) == [{"OMP_NUM_THREADS": str(max(1, cores // 2))}] * 2
