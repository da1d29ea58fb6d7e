"""What `plainres bench` shows: a card for each network, a comparison, a line while one waits."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.status import Status

_MIB = 2**20


class Waiting:
    """One line on a terminal's standard error while a network is measured; nothing elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._status: Status | None = None

    def __call__(self, network: str, done: int, rounds: int) -> None:
        """Say which round it is."""
        text = f"{network}: round {done + 1} of {rounds}"
        if self._status is None and self._console.is_terminal:
            self._status = self._console.status(text)
            self._status.start()
        elif self._status is not None:
            self._status.update(text)

    def stop(self) -> None:
        """Take the line away."""
        if self._status is not None:
            self._status.stop()
        self._status = None

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def card(row: Mapping[str, Any]) -> str:
    """One network, for people. Spreads are the quartiles of the rounds."""
    lower, upper = row["ms_per_step_spread"][1:3]
    rounds = f"{row['rounds']} rounds of {row['steps_per_round']}"
    threads = f", {row['threads']} thread{'s' * (row['threads'] > 1)}" if row["device"] == "cpu" else ""
    data = "part of the step" if row["data_in_step"] else "beside the step"
    whose = {"device": "of the device"}.get(row["peak_memory_of"], f"of the {row['peak_memory_of']}")
    lines = [
        f"{row['network']}: {row['parameters']:,} parameters, {row['multiply_adds']:,} multiply-adds",
        f"  engine {row['engine']} in {row['precision']}, batch {row['batch']}, on {row['chip']} "
        f"({row['device']}{threads})",
        *(f"  note: {reason}" for reason in row["unavailable"]),
        f"  not counted: {row['warmup_steps']} warm-up steps, {row['compile_seconds']:.1f} s of compilation",
        _line("step", row["ms_per_step"], "ms", f"{lower:,.2f} to {upper:,.2f}, {rounds}"),
        _line("speed", row["images_per_second"], "images/s", ""),
        _line("data path", row["data_ms_per_step"], "ms", f"a batch, timed apart; {data}"),
        _line("50,000 images", row["seconds_per_50000_images"], "s", "data path included"),
        _line("paper's recipe", row["paper_hours"], "h", "64,000 steps of 128, data path included"),
        _line("memory", row["peak_memory_bytes"] / _MIB, "MiB", f"peak {whose}, the data set in it"),
        *_ceilings(row),
        *_against(row),
        *_gpu(row),
        *_profile("where the time goes", row["profile_ms"]),
        *_profile("where the time of the usual way goes", row["against_profile_ms"]),
    ]
    return "\n".join(lines)


def _line(name: str, value: float, unit: str, more: str) -> str:
    number = f"{value:,.0f}" if value >= 10_000 else f"{value:,.{2 if value < 100 else 1}f}"
    return f"  {name:<16}{number:>10} {unit:<9}{more}".rstrip()


def _ceilings(row: Mapping[str, Any]) -> list[str]:
    def share(key: str) -> str:
        _, lower, upper, _ = row[f"{key}_spread"]
        return f"{row[key]:.0%} of it ({lower:.0%} to {upper:.0%})"

    copied = f"{row['copy_bytes'] / _MIB:,.0f} MiB read and written"
    return [
        _line("matrix products", row["gemm_gflops"], "GFLOP/s", f"the step reaches {share('gemm_share')}"),
        _line("copy", row["copy_gbs"], "GB/s", f"{copied}; the step's least traffic is {share('copy_share')}"),
    ]


def _against(row: Mapping[str, Any]) -> list[str]:
    if row["ratio"] is None:
        return []
    _, lower, upper, _ = row["ratio_spread"]
    ratio = f"the usual way, in turns: {row['ratio']:.2f} times as long ({lower:.2f} to {upper:.2f})"
    return [_line(f"against {row['against']}", row["against_ms_per_step"], "ms", ratio)]


def _gpu(row: Mapping[str, Any]) -> list[str]:
    clocks = ", ".join(f"{name} {megahertz:,} MHz" for name, megahertz in (row["clocks_mhz"] or {}).items())
    joules = row["joules_per_image"]
    energy = [] if joules is None else [_line("energy", 1e3 * joules, "mJ", "an image")]
    return [*([f"  {'clocks':<16}{clocks}"] if clocks else []), *energy]


def _profile(title: str, profile: Mapping[str, float] | None) -> list[str]:
    if not profile:
        return []
    total = sum(profile.values())
    rows = [f"    {name:<22}{ms:>10,.2f} ms {ms / total:>6.1%}" for name, ms in profile.items()]
    return [f"  {title}", *rows, f"    {'together':<22}{total:>10,.2f} ms"]


def comparison(rows: Sequence[Mapping[str, Any]], differing: Sequence[str], before: str, after: str) -> str:
    """Two results side by side."""
    lines = [f"A: {before}", f"B: {after}", *(f"they differ: {what}" for what in differing)]
    heads = ("ms A", "ms B", "images/s A", "images/s B", "B / A", "MiB A", "MiB B")
    lines.append(_cells("network", heads))
    for row in rows:
        sides = [row["a"], row["b"]]
        steps = [f"{side['ms_per_step']:,.2f}" if side else "-" for side in sides]
        speeds = [f"{side['images_per_second']:,.0f}" if side else "-" for side in sides]
        memory = [f"{side['peak_memory_bytes'] / _MIB:,.0f}" if side else "-" for side in sides]
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        lines.append(_cells(row["network"], (*steps, *speeds, ratio, *memory)))
    return "\n".join(lines)


def _cells(name: str, values: Sequence[str]) -> str:
    return f"{name:<20}" + "".join(f"{value:>12}" for value in values)
