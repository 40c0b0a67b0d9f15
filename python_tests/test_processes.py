"""The same bits in forked and spawned processes, in threads, and between torch's own products.

Permission for matrix tiles is a process's, their configuration a thread's, and torch configures
them for itself: whoever calls first, and from where, must not show in an answer.
"""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from oltr_ext import ops


def answers(seed: int = 0) -> torch.Tensor:
    """Outputs and gradients in bfloat16, where tiles multiply if there are any; as one vector."""
    made = torch.Generator().manual_seed(seed)
    x, memory, keys, gate = (
        torch.randn(n, 64, generator=made).bfloat16().requires_grad_() for n in (130, 300, 300, 64)
    )
    zero = torch.zeros(300).bfloat16(), torch.zeros(64).bfloat16()
    out = ops.meta_embedding(x, memory, keys, zero[0], gate, zero[1], memory_grad=True)[0]
    grads = torch.autograd.grad(out.float().square().sum(), (x, memory, keys, gate))
    distance, index = ops.nearest_centroid(x.detach().float(), memory.detach().float())
    return torch.cat([t.detach().double().flatten() for t in (out, *grads, distance, index)])


def child(seed: int, sent) -> None:
    torch.set_num_threads(1)  # a forked process has none of its parent's OpenMP threads
    sent.send(answers(seed).numpy())


def in_process(method: str, seed: int) -> torch.Tensor:
    context = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(seed, there))
    process.start()
    there.close()
    assert here.poll(120), f"a process started by {method} did not answer"
    found = torch.from_numpy(here.recv())
    process.join(30)
    assert process.exitcode == 0
    return found


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_answers_as_its_parent(method, run_python):
    """In a fresh process: where autograd has threads, none may fork and then go backward."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform does not {method}")
    run_python(f"""
import torch
from test_processes import answers, in_process
if __name__ == "__main__":
    torch.set_num_threads(1)
    before = answers()  # the parent has tiles by now
    assert torch.equal(in_process("{method}", 0), before)
    assert torch.equal(in_process("{method}", 1), answers(1))
    assert torch.equal(answers(), before)
""")


def test_the_first_call_may_be_a_child_s(run_python):
    """A process that forks before anything asked for tiles, and asks afterwards itself."""
    run_python("""
import torch
torch.set_num_threads(1)
from test_processes import answers, in_process
child = in_process("fork", 0)
assert torch.equal(child, answers())
assert torch.equal(child, in_process("fork", 0))
""")


def test_threads_answer_alike():
    """Those of a pool, and those made later, at once and between others."""
    want = {seed: answers(seed) for seed in range(4)}
    with ThreadPoolExecutor(4) as pool:
        for seed, got in zip([0, 1, 2, 3] * 3, pool.map(answers, [0, 1, 2, 3] * 3), strict=True):
            assert torch.equal(got, want[seed])
    late: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: late.append(answers(2)))
    thread.start(), thread.join()
    assert torch.equal(late[0], want[2])


def test_torch_s_own_products_between_ours():
    """Each finds its tiles as it left them, or configures them anew."""
    made = torch.Generator().manual_seed(3)
    a, b = (torch.randn(192, 192, generator=made).bfloat16() for _ in range(2))
    ours, theirs = answers(), a @ b
    for _ in range(5):
        assert torch.equal(a @ b, theirs)
        assert torch.equal(answers(), ours)
