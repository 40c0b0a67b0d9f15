"""What comes before a timed call: both processors awake for it, nobody else's threads on them.

A thread of OpenMP that has nothing to do spins for some milliseconds, and then sleeps. Another
runtime's that still spins takes a processor from the one who is timed. One that sleeps may be woken
on the very processor of who woke it, who spins himself: until the scheduler moves it, all
work is done by one. (Two virtual cores of an Emerald Rapids, torch 2.14.1, `memory_attention` of
256 x 1,000 x 512: 2.2 ms; after 5 ms of rest 2.4, after 50 ms 12.6; eager PyTorch alike.) Who came
after a call that lets torch's threads sleep paid. Small calls for 10 ms bring them back, 5 do not:
results/cpu_amx.md.
"""

from __future__ import annotations

import time

import torch

REST, WAKE = 0.005, 0.02


def ready() -> None:
    """Lets the threads of the call before stop, and wakes torch's until each has a processor."""
    time.sleep(REST)
    few = torch.ones(torch.get_num_threads() << 15)  # as little as torch cuts for its threads
    end = time.perf_counter() + WAKE
    while time.perf_counter() < end:
        few.add_(1)
