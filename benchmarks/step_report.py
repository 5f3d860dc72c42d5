"""What `train_step` measured, as a table for people and as the JSON that benchmarks end with."""

from typing import TYPE_CHECKING, Any

from benchmarks import machine, rates

if TYPE_CHECKING:
    from benchmarks.train_step import Measurement

GIB = 2**30


def show(measured: "Measurement") -> None:
    cfg, sizes = measured.cfg, {name: f"{size / GIB:10.2f} GiB" for name, size in measured.sizes.items()}
    count = sum(parameter.numel() for parameter in measured.trainable)
    checkpointing = ", gradient checkpointing" if cfg.train.gradient_checkpointing else ""
    source = "one random clip" if measured.dataset is None else "clips of a dataset through the loader"
    print(f"{measured.arguments.config}: {count / 1e6:.1f}M trainable parameters{checkpointing}; {source}")
    for way in measured.runs:
        _show_way(measured, way)
    print(f"  needs         {measured.flops / 1e9:10.1f} GFLOP a clip")
    print(f"  machine       {measured.matmul_rate / 1e9:10.1f} GFLOP/s in matrix products of the largest layer")
    for rate, where in ((measured.square_rate, "in large square ones"), (_stated(measured), "by its data sheet")):
        if rate is not None:
            print(f"                {rate / 1e9:10.1f} GFLOP/s {where}")
    moved, floor = measured.traffic.bytes.total(), measured.traffic.unavoidable
    print(f"  moves         {moved / 1e9:10.1f} GB a clip, each operation by itself; of that")
    for kind, size in measured.traffic.bytes.most_common():
        print(f"                {size / 1e9:10.1f} GB {kind}")
    print(f"                {floor / 1e9:10.1f} GB with norms, elementwise work and copies fused into the rest")
    print(f"  machine       {measured.copy_rate / 1e9:10.1f} GB/s of a copy, read and written")
    print(f"  weights       {sizes['weights']}")
    print(f"  gradients     {sizes['gradients']}")
    print(f"  optimizer     {sizes['optimizer']}")
    print(f"  kept          {sizes['kept']}  for the backward pass of one clip")
    print(f"                {sizes['kept_with_checkpointing']}  with gradient checkpointing")
    print(f"  peak          {sizes['peak_forward_backward']}  of the first forward and backward, of one clip")
    print(f"                {sizes['peak_memory']}  of all eager steps with their updates")
    if measured.arguments.list_kept:
        for shape, size in measured.listed.most_common(20):
            print(f"  {size / 2**20:10.1f} MiB  {shape}")


def _show_way(measured: "Measurement", way: str) -> None:
    run = measured.runs[way]
    found, seconds = figures(measured, way), run.typical(measured.device)
    print(f"  {way}, {run.batch_size} x {measured.cfg.train.num_frames} frames")
    print(f"    step        {seconds.total:10.4f} s    {found['frames_per_second']:,.1f} frames/s")
    print(f"      forward   {seconds.forward:10.4f} s")
    print(f"      backward  {seconds.backward:10.4f} s")
    print(f"      update    {seconds.update:10.4f} s")
    print(f"    waits       {found['data_wait_share']:10.2%}      of the time for data")
    print(f"    processor   {run.cpu:10.2f} s    a step, over all threads")
    stated = "" if found["mfu_data_sheet"] is None else f", {found['mfu_data_sheet']:.3f} of the data sheet's"
    print(f"    reaches     {found['gflops']:10.1f} GFLOP/s, {found['mfu']:.3f} of the machine's{stated}")
    print(f"    moves       {found['gb_per_second']:10.1f} GB/s,    {found['gb_per_second_share']:.3f} of a copy's")
    if run.warm_up is not None:
        print(f"    first step  {run.warm_up:10.2f} s")
    if way in measured.profiles:
        print(measured.profiles[way].table())


def figures(measured: "Measurement", way: str) -> dict[str, Any]:
    """One way's numbers, JSON-able. `mfu` is against the measured products of the largest layer."""
    run = measured.runs[way]
    seconds = run.typical(measured.device)
    flops = run.batch_size * measured.flops / seconds.total
    # Compiled code fuses what eager code moves through memory; what it surely moves is the rest. The optimizer's
    # share does not grow with the batch.
    moved = measured.bytes_moved(run.batch_size, fused=way == "compiled") / seconds.total
    stated = _stated(measured)
    frames = run.batch_size * measured.cfg.train.num_frames
    return {
        "batch_size": run.batch_size,
        "steps": len(run.steps),
        "seconds": round(seconds.total, 5),
        "seconds_of": {name: round(value, 5) for name, value in seconds._asdict().items()},
        "seconds_range": [round(value, 5) for value in run.range],
        "first_step_seconds": None if run.warm_up is None else round(run.warm_up, 2),
        "processor_seconds": round(run.cpu, 3),
        "frames_per_second": round(frames / seconds.total, 2),
        "frames_per_second_with_data": round(frames / run.mean, 2),
        "data_wait_share": round(run.stall_share, 5),
        "gflops": round(flops / 1e9, 2),
        "mfu": round(flops / measured.matmul_rate, 4),
        "mfu_square": None if measured.square_rate is None else round(flops / measured.square_rate, 4),
        "mfu_data_sheet": None if stated is None else round(flops / stated, 4),
        "gb_per_second": round(moved / 1e9, 2),
        "gb_per_second_share": round(moved / measured.copy_rate, 4),
        "peak_gib": round(run.peak / GIB, 2),
        "profile": measured.profiles[way].as_dict() if way in measured.profiles else None,
    }


def result(measured: "Measurement") -> dict[str, Any]:
    """The JSON: the last way's GFLOP/s beside the machine's, and everything else."""
    ways = {way: figures(measured, way) for way in measured.runs}
    main = ways["compiled" if "compiled" in ways else "eager"]
    sizes = measured.sizes
    both = {"eager": ways["eager"], "compiled": ways.get("compiled")}
    if both["compiled"] is not None:
        both["speedup"] = round(main["frames_per_second"] / ways["eager"]["frames_per_second"], 3)
    return {
        "name": f"train_step.{measured.arguments.config}",
        "value": main["gflops"],
        "unit": "GFLOP/s",
        "reference": round(measured.matmul_rate / 1e9, 2),
        "ratio": main["mfu"],
        "seconds": main["seconds"],
        "frames_per_second": main["frames_per_second"],
        "data_wait_share": main["data_wait_share"],
        "small": measured.arguments.small,
        "num_frames": measured.cfg.train.num_frames,
        "parameters": sum(parameter.numel() for parameter in measured.trainable),
        "gradient_checkpointing": measured.cfg.train.gradient_checkpointing,
        "tflop_per_clip": round(measured.flops / 1e12, 4),
        "gb_per_clip": {kind: round(size / 1e9, 3) for kind, size in measured.traffic.bytes.items()},
        "gb_per_second_copy": round(measured.copy_rate / 1e9, 1),
        "gflops_square": None if measured.square_rate is None else round(measured.square_rate / 1e9, 1),
        **both,
        "gib": {name: round(size / GIB, 3) for name, size in sizes.items()},
        "peak_memory_gib": round(sizes["peak_memory"] / GIB, 2),
        "machine": machine.describe(),
    }


def _stated(measured: "Measurement") -> float | None:
    return rates.data_sheet_rate(measured.device)
