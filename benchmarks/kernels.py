"""Which kernels the time of a piece of work goes to: torch's profiler, grouped by what the kernels do."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.kinds import KINDS, kind_of
from benchmarks.rates import timed

NUM_LISTED = 20
NAME_WIDTH = 90


class Kernel(NamedTuple):
    name: str
    kind: str
    calls: int
    seconds: float


class Profile(NamedTuple):
    seconds: float  # of the whole work, with the profiler's own cost
    kernels: list[Kernel]  # the longest first

    @property
    def seconds_by_kind(self) -> dict[str, float]:
        sums: Counter[str] = Counter()
        for kernel in self.kernels:
            sums[kernel.kind] += kernel.seconds
        return {kind: sums[kind] for kind in KINDS if sums[kind]}

    @property
    def idle(self) -> float:
        """Seconds in which no kernel ran: launches that come too late, waiting. On a CPU the profiler's own cost."""
        return max(0.0, self.seconds - sum(kernel.seconds for kernel in self.kernels))

    def table(self) -> str:
        lines = [f"  where the time of one step goes, {self.seconds * 1e3:.1f} ms under the profiler"]
        for kind, seconds in [*self.seconds_by_kind.items(), ("nothing runs", self.idle)]:
            lines.append(f"    {kind:22}{seconds * 1e3:10.2f} ms {seconds / self.seconds:7.1%}")
        for kernel in self.kernels[:NUM_LISTED]:
            share = kernel.seconds / self.seconds
            lines.append(
                f"    {kernel.seconds * 1e3:8.2f} ms {share:6.1%} {kernel.calls:6} x  {kernel.name[:NAME_WIDTH]}"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 5),
            "idle_share": round(self.idle / self.seconds, 4),
            "share": {kind: round(seconds / self.seconds, 4) for kind, seconds in self.seconds_by_kind.items()},
            "kernels": [
                [kernel.name[:NAME_WIDTH], kernel.calls, kernel.seconds] for kernel in self.kernels[:NUM_LISTED]
            ],
        }


def measure(work: Callable[[], object], device: torch.device) -> Profile:
    """Run `work` once under the profiler, after it was run before: compiling and choosing kernels is not its time."""
    is_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_gpu, acc_events=True) as profiler:
        _, seconds = timed(work, device)
    kernels = []
    for event in profiler.key_averages():
        # On a GPU its kernels, not the stretches that torch names; on a CPU operations, without those that they call.
        if (event.device_type == DeviceType.CUDA) == is_gpu and not (is_gpu and event.is_user_annotation):
            microseconds = event.self_device_time_total if is_gpu else event.self_cpu_time_total
            kernels.append(Kernel(event.key, kind_of(event.key), event.count, microseconds / 1e6))
    kernels.sort(key=lambda kernel: kernel.seconds, reverse=True)
    return Profile(seconds, kernels)
