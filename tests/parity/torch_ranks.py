"""Ranks that train one injected model together; run by test_torch_trainer.py."""

import sys

import pytest

torch = pytest.importorskip("torch")  # pytest looks for docstrings' examples here too
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from polymoe.interop.torch import inject  # noqa: E402

TASKS, IDS = ["a", "b", "c"], [2, 0, 1, 2, 1, 0]


def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
    return inject(model, "poly", TASKS, ["0", "2"], noise="off", init_weights=False)


def work(rank, ranks, meeting):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=ranks)
    model = DistributedDataParallel(make())
    x = torch.randn(6, 4, 12, generator=torch.Generator().manual_seed(1))
    mine = slice(rank * 6 // ranks, (rank + 1) * 6 // ranks)
    for _ in range(2):  # gradients accumulate
        model(x[mine], task_ids=IDS[mine]).square().mean().backward()
    whole = make()
    for _ in range(2):
        whole(x, task_ids=IDS).square().mean().backward()
    for (name, p), q in zip(whole.named_parameters(), model.module.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-7, msg=name)
    noisy = inject(
        torch.nn.Sequential(torch.nn.Linear(4, 4)), "poly", TASKS, ["0"], init_weights=False
    ).train()
    y = noisy(torch.ones(2, 1, 4), task_ids=0).detach()
    all_of_it = [torch.empty_like(y) for _ in range(ranks)]
    torch.distributed.all_gather(all_of_it, y)
    drawn = torch.cat(all_of_it)[:, 0, 0].tolist()
    assert len(set(drawn)) == len(drawn), "examples of all ranks draw their own noise"
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if rank == 0:
        print(f"{ranks} ranks agree")


if __name__ == "__main__":
    ranks, meeting = int(sys.argv[1]), sys.argv[2]
    if ranks == 1:
        work(0, 1, meeting)
    else:
        torch.multiprocessing.spawn(work, (ranks, meeting), nprocs=ranks)
