import contextlib
import csv
import ctypes
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from conftest import TINY
from plainres import bench as benches
from plainres import bench_files, bench_power, bench_profile, bench_sides, memory
from plainres.bench import Settings, Sizes, bench, document
from plainres.bench_ceilings import Ceilings, Stopwatch
from plainres.bench_figures import Samples, Spread, figures, moved_bytes
from plainres.bench_sides import Usual
from plainres.cli import app
from plainres.cli_bench_show import card
from plainres.errors import UserError
from plainres.network import Network
from plainres.spec import NetworkSpec
from plainres.step import Eager
from plainres.summary import layers, operations

SMALL = Sizes(images=300, products=(32, 64), copy_bytes=1 << 16)
QUICK = Settings(device="cpu", batch=8, threads=1, engine="eager", against="eager", rounds=2, seconds=1e-9)
CPU = torch.device("cpu")
WORDS = (
    "bench",
    "resnet8",
    "--engine",
    "eager",
    "--device",
    "cpu",
    "--batch",
    "8",
    "--rounds",
    "2",
    "--seconds",
    "1e-9",
)


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    """A real measurement, tiny."""
    (found,) = bench([TINY], Settings(**{**vars(QUICK), "profile": True}), sizes=SMALL)
    return found


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "Sizes", lambda: SMALL)


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def one_line(*words: str) -> str:
    done = call(*words)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("plainres: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    return done.stderr


# -- the arithmetic


def test_the_figures_of_known_rounds() -> None:
    samples = Samples(
        step=[0.25, 0.2, 0.5],
        against=[0.5, 0.5, 0.5],
        data=[0.01, 0.02, 0.03],
        products=[{"float32": {1024: 1e11, 2048: 2e11}, "bfloat16": {1024: 9e12, 2048: 9e12}}] * 3,
        copy=[1e10, 2e10, 1e10],
        joules=[12.8, 12.8, 25.6],
        clocks=[{"sm": 1000}, {"sm": 1400}, {"sm": 1200}],
    )
    with torch.device("meta"):
        flops = operations(Network(NetworkSpec.named("resnet20")))
    found = figures(samples, layers("resnet20"), flops=flops, batch=128, precision="float32", draw_seconds=0.005)
    assert (found["parameters"], found["multiply_adds"]) == (269_722, 40_551_050)
    assert found["ms_per_step"] == pytest.approx(250)
    assert found["ms_per_step_spread"] == pytest.approx([200, 225, 375, 500])
    assert found["images_per_second"] == pytest.approx(512)
    assert found["data_ms_per_step"] == pytest.approx(25)
    assert found["seconds_per_50000_images"] == pytest.approx(50_000 / 128 * 0.275)
    assert found["paper_hours"] == pytest.approx(64_000 * 0.275 / 3600)
    assert (found["against_ms_per_step"], found["ratio"]) == pytest.approx((500, 2))
    assert found["ratio_spread"] == pytest.approx([1, 1.5, 2.25, 2.5])
    assert found["gemm_gflops"] == pytest.approx(200)  # not bfloat16's: this is float32
    assert found["gemm_share"] == pytest.approx(128 * 242_421_564 / 0.25 / 2e11)
    assert found["products_gflops"]["bfloat16"]["2048"] == pytest.approx(9000)
    assert found["copy_gbs"] == pytest.approx(10)
    assert found["copy_share"] == pytest.approx(128 * 6_029_312 / 0.2 / 2e10)  # the middle one of 0.31, 0.19, 0.15
    assert (found["joules_per_image"], found["clocks_mhz"]) == (pytest.approx(0.1), {"sm": 1200})


def test_bfloat16_is_held_against_its_own_products_and_needs_no_baseline() -> None:
    products = [{"float32": {64: 1e11}, "bfloat16": {64: 4e11}}]
    samples = Samples(step=[0.1], data=[0.01], products=products, copy=[1e10])
    found = figures(samples, layers(TINY), flops=10**6, batch=10, precision="bfloat16", draw_seconds=0.0)
    assert (found["gemm_gflops"], found["gemm_share"]) == pytest.approx((400, 10**7 / 0.1 / 4e11))
    assert found["ratio"] is found["against_ms_per_step"] is found["joules_per_image"] is found["clocks_mhz"] is None


def test_a_data_path_in_the_step_is_not_counted_twice() -> None:
    samples = Samples(step=[0.1], data=[0.04], products=[{"float32": {64: 1e11}}], copy=[1e10])
    facts = {"flops": 1, "batch": 10, "precision": "float32", "draw_seconds": 0.01}
    beside, inside = (figures(samples, layers(TINY), **facts, data_in_step=x) for x in (False, True))  # type: ignore[arg-type]
    assert beside["seconds_per_50000_images"] == pytest.approx(5000 * 0.15)
    assert inside["seconds_per_50000_images"] == pytest.approx(5000 * 0.11)
    assert inside["images_per_second"] == beside["images_per_second"] == pytest.approx(100)


@pytest.mark.parametrize(("network", "megabytes"), [("resnet20", 3.0), ("resnet56", 8.5), ("plain110", 16.8)])
def test_the_least_traffic_of_fused_steps(network: str, megabytes: float) -> None:
    assert moved_bytes(layers(network), "bfloat16") / 1e6 == pytest.approx(megabytes, abs=0.05)
    assert moved_bytes(layers(network), "float32") == 2 * moved_bytes(layers(network), "bfloat16")


def test_the_spread_of_one_round() -> None:
    assert Spread.of([3.0]) == Spread(3, 3, 3, 3, 3)


def test_the_stopwatch_and_the_ceilings_by_a_clock_of_ours() -> None:
    times = iter(range(1000))
    watch = Stopwatch(CPU, lambda: float(next(times)))  # everything takes one second
    assert watch(lambda: None, times=4) == 0.25
    ceilings = Ceilings(watch, ["float32"], sizes=(8, 16), copy_bytes=100)
    assert ceilings.products() == {"float32": {8: 2 * 8**3, 16: 2 * 16**3}}
    assert ceilings.copy() == 200


# -- what is measured


def test_a_measurement_says_what_programs_expect(row: dict[str, Any]) -> None:
    shared = {"network", "images_per_second", "ms_per_step", "peak_memory_bytes", "ratio"}
    shared |= {"gemm_gflops", "gemm_share", "copy_gbs"}
    assert shared <= row.keys()
    assert (row["network"], row["engine"], row["threads"], row["batch"]) == (TINY.name, "eager", 1, 8)
    assert row["warmup_steps"] == 3
    assert row["compile_seconds"] == 0
    assert row["data_in_step"] is False
    found = document([row], QUICK)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["command"].startswith(f"plainres bench {TINY.name} --device cpu --batch 8 --threads 1 --engine eager")
    text = card(row)
    assert "against eager" in text
    assert "1 thread)" in text
    assert "3 warm-up steps, 0.0 s of compilation" in text


def test_the_profile_sums_to_the_step_and_its_data(row: dict[str, Any]) -> None:
    asked = {"convolution forward", "input gradient", "weight gradient", "BN", "pointwise", "update", "data", "other"}
    for profile, step in (("profile_ms", "ms_per_step"), ("against_profile_ms", "against_ms_per_step")):
        parts = row[profile]
        assert set(parts) == asked
        assert all(ms > 0 for ms in parts.values())
        assert sum(parts.values()) == pytest.approx(row[step] + row["data_ms_per_step"])
        assert list(parts)[-1] == "other"
    assert "where the time of the usual way goes" in card(row)


def test_everything_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def logged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            log.append(name)
            return function(*args)

        return run

    seconds = bench_sides.Side.seconds

    def side_seconds(side: bench_sides.Side, steps: int) -> float:
        log.append(type(side.runner).__name__)
        return seconds(side, steps)

    monkeypatch.setattr(bench_sides.Side, "seconds", side_seconds)
    monkeypatch.setattr(Ceilings, "products", logged("products", Ceilings.products))
    monkeypatch.setattr(Ceilings, "copy", logged("copy", Ceilings.copy))
    monkeypatch.setattr(benches, "data_seconds", logged("data", benches.data_seconds))
    rounds: list[int] = []
    list(bench([TINY], QUICK, sizes=SMALL, progress=lambda name, done, total: rounds.append(len(log))))
    assert log[: rounds[0]] == ["Eager", "Usual", "Eager"]  # both warm up, one step tells how many a turn has
    rest = ["data", "products", "copy"]
    assert log[rounds[0] :] == ["Eager", "Usual", *rest, "Usual", "Eager", *rest]


def test_each_side_runs_under_its_own_settings_on_the_same_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[Any]] = {"Eager": set(), "Usual": set()}
    numbers: list[int] = []

    def watched(kind: Any) -> Any:
        step = kind.step

        def run(self: Any, number: int, rate: float) -> None:
            threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
            batch = (self.images, self.labels) if kind is Usual else self.work.batches[number]
            layout = next(p for p in self.network.parameters()) if kind is Usual else None
            seen[kind.__name__].add((threads, exact, float(batch[0].sum()), int(batch[1].sum())))
            assert layout is None or layout.is_contiguous()
            numbers.append(number)
            step(self, number, rate)

        return run

    for kind in (Eager, Usual):
        monkeypatch.setattr(kind, "step", watched(kind))
    settings = Settings(**{**vars(QUICK), "rounds": 1})
    list(bench([TINY], settings, sizes=SMALL))
    ((threads, exact, *batch),), ((their_threads, their_exact, *theirs),) = seen["Eager"], seen["Usual"]
    assert (threads, exact, their_threads, their_exact) == (1, True, 1, False)
    assert batch == theirs
    assert numbers == [0, 1, 2, 0, 1, 2, 3, 4, 3]  # ours, theirs warm; one of ours; one round of each


def test_the_usual_way_is_as_it_comes() -> None:
    batch = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last), torch.tensor([0, 1, 0, 1])
    usual = Usual(TINY, batch, "bfloat16")
    (group,) = usual.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)
    assert (group["fused"], group["foreach"], group["nesterov"]) == (None, None, False)
    assert usual.images.is_contiguous()
    before = usual.network.fc.weight.detach().clone()
    usual.step(0, 0.0)
    assert not torch.equal(before, usual.network.fc.weight)


def test_an_engine_that_looks_up_its_own_images(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Eager):
        compile_seconds = 2.5

        def step(self, number: int, learning_rate: float) -> None:
            pass

        def profile(self) -> dict[str, float]:
            return {"BN and pointwise": 1.0, "convolution forward": 3.0, "other": 7.0}

    monkeypatch.setattr("plainres.engines.make", lambda name, work: Own(work))
    (found,) = bench([TINY], Settings(device="cpu", batch=8, rounds=1, seconds=1e-9, profile=True), sizes=SMALL)
    assert found["data_in_step"] is True
    assert found["compile_seconds"] == 2.5
    profile, step = found["profile_ms"], found["ms_per_step"]  # told of eleven seconds, which the step does not take
    assert list(profile) == ["convolution forward", "BN and pointwise", "other"]
    assert list(profile.values()) == pytest.approx([3 / 11 * step, 1 / 11 * step, 7 / 11 * step])


def test_an_engine_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    from plainres.errors import Unavailable

    def make(name: str, work: Any) -> Eager:
        if name != "eager":
            raise Unavailable("no compiler")
        return Eager(work)

    monkeypatch.setattr("plainres.engines.make", make)
    monkeypatch.setattr("plainres.engines.candidates", lambda *_: ["native", "eager"])
    settings = Settings(device="cpu", batch=8, rounds=1, seconds=1e-9)
    (found,) = bench([TINY], settings, sizes=SMALL)
    assert (found["engine"], found["unavailable"]) == ("eager", ["engine 'native': no compiler"])
    assert "note: engine 'native': no compiler" in card(found)
    with pytest.raises(UserError, match=r"^engine 'native': no compiler$"):
        list(bench([TINY], Settings(**{**vars(settings), "engine": "native"}), sizes=SMALL))


# -- the profile


def test_parts_are_settled_with_the_whole() -> None:
    parts = bench_profile.settled({"update": 1.0, "BN": 2.0, "mine": 1.0, "other": 99.0}, 10.0)
    assert parts == {"BN": 2.0, "mine": 1.0, "update": 1.0, "other": 6.0}
    assert list(parts) == ["BN", "mine", "update", "other"]
    assert bench_profile.settled({"BN": 8.0, "update": 12.0}, 10.0) == {"BN": 4.0, "update": 6.0, "other": 0.0}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_nhwc", "convolution forward"),
        ("sm80_xmma_dgrad_implicit_gemm_indexed_tf32", "input gradient"),
        ("void cudnn::cnn::wgrad2d_grouped_direct_kernel<float>", "weight gradient"),
        ("triton_red_fused__native_batch_norm_legit_functional_relu_3", "BN and pointwise"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float>", "BN"),
        ("void at::native::batch_norm_backward_reduce_channels_last_kernel", "BN"),
        ("void at::native::multi_tensor_apply_kernel<FusedSgdMathFunctor>", "update"),
        ("triton_poi_fused_add_relu_0", "pointwise"),
        ("void at::native::vectorized_elementwise_kernel<4, threshold>", "pointwise"),
        ("ampere_sgemm_32x32_sliced1x4_tn", None),
    ],
)
def test_kernels_are_told_apart_by_their_names(name: str, found: str | None) -> None:
    assert bench_profile.category(name, bench_profile._KERNELS) == found


@pytest.mark.parametrize("network", ["resnet20", "plain20", "resnet20-b", "preact20"])
def test_every_convolution_is_counted_once(network: str) -> None:
    found = bench_profile.convolutions(NetworkSpec.named(network))
    expected = [layer for layer in layers(network) if layer.kind == "Conv2d"]
    assert sum(found.values()) == len(expected)
    work = sum(
        count * layer.weight.numel() * (image[1] // layer.stride[0]) ** 2 for (image, layer, _), count in found.items()
    )
    assert work == sum(layer.multiply_adds for layer in expected)
    assert [image for image, _, first in found if first] == [(3, 32, 32)]


def test_the_input_gradients_share_leaves_out_the_images() -> None:
    times = iter(range(10_000))
    watch = Stopwatch(CPU, lambda: float(next(times)))  # every gradient takes one second
    share = bench_profile.input_gradient_share(TINY, 2, "float32", nchw=True, watch=watch)
    assert share == pytest.approx(6 / 13)  # seven convolutions; the first has one gradient


# -- memory


def test_the_need_is_what_autograd_keeps() -> None:
    found = memory.need(TINY, "float32", images=1000)
    weights = 4 * sum(layer.parameters for layer in layers(TINY))
    assert found.fixed == 3 * weights + 1000 * 3072
    maps = 4 * (4 * 32**2 * 3 + 8 * 16**2 * 2 + 16 * 8**2 * 2)  # bytes of the convolutions' outputs
    # each, and what BN and ReLU make of it; the image; three of the largest in passing
    assert found.per_image == pytest.approx(2 * maps + 4 * 3072 + 3 * 4 * 4 * 32**2, rel=0.01)
    assert found.bytes(10) == found.fixed + 10 * found.per_image
    assert memory.need(TINY, "bfloat16", 1000).per_image < 0.7 * found.per_image


def test_what_does_not_fit_says_what_would() -> None:
    need = memory.Need(fixed=2 * 2**30, per_image=2**20)
    memory.check(need, 1024, 3 * 2**30, "x", CPU)
    memory.check(need, 10**6, 0, "x", CPU)  # nobody knows what there is
    with pytest.raises(UserError, match=r"x at batch 2048 needs at least 4.0 GiB .* cpu has 3.0 GiB .* --batch 1024"):
        memory.check(need, 2048, 3 * 2**30, "x", CPU)
    with pytest.raises(UserError, match="no batch would fit"):
        memory.check(need, 1, 2**30, "x", CPU)


def test_running_out_of_memory_is_one_line() -> None:
    need = memory.Need(0, 2**20)
    with (
        pytest.raises(UserError, match=r"x at batch 4096 ran out of memory: at least 4.0 GiB .* try --batch 2048"),
        memory.explained(need, 4096, "x", CPU),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shapes"), memory.explained(need, 1, "x", CPU):
        raise RuntimeError("shapes do not match")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a peak be reset")
def test_the_peak_starts_again() -> None:
    peak = memory.Peak(CPU)
    before = peak.read()[0]
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    del block
    assert peak.read()[0] - before > 60 * 2**20
    again = memory.Peak(CPU).read()
    assert again[0] - before < 30 * 2**20
    assert again[1] == "process"


# -- power


class FakeNvml:
    """As the library answers: 0 for success, results by reference."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.name = fails, b""

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return int(self.fails == "init")

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:  # noqa: N802
        self.name = name
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: Any, value: Any) -> int:  # noqa: N802
        ctypes.cast(value, ctypes.POINTER(ctypes.c_ulonglong))[0] = 5_000_000_500
        return int(self.fails == "energy")

    def nvmlDeviceGetClockInfo(self, _handle: Any, kind: int, value: Any) -> int:  # noqa: N802
        ctypes.cast(value, ctypes.POINTER(ctypes.c_uint))[0] = 1000 + kind
        return int(self.fails == "clocks")


def test_power_asks_nvml_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, library = torch.device("cuda:0"), FakeNvml()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab-cd"))
    found = bench_power.power(gpu, library)
    assert found is not None
    assert library.name == b"GPU-ab-cd"
    assert found.joules() == pytest.approx(5_000_000.5)
    assert found.clocks() == {"sm": 1001, "memory": 1002}
    assert bench_power.Power(FakeNvml("energy"), None).joules() is None
    assert bench_power.Power(FakeNvml("clocks"), None).clocks() is None
    assert bench_power.power(gpu, FakeNvml("init")) is None
    assert bench_power.power(CPU) is None


# -- files


def test_a_table_grows_and_keeps_its_header(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "speed.csv"
    for _ in range(2):
        table = bench_files.Table(path)
        table.append({**row, "torch": "2", "plainres": "1"})
        table.append({**row, "network": "a, b", "ratio": None})
    lines = list(csv.DictReader(path.read_text().splitlines()))
    assert [line["network"] for line in lines] == [TINY.name, "a, b"] * 2
    assert float(lines[0]["ms_per_step"]) == row["ms_per_step"]
    assert lines[1]["ratio"] == ""
    path.write_text(path.read_text()[:-5])  # as a crash could leave it
    bench_files.Table(path).append(row)
    assert list(csv.DictReader(path.read_text().splitlines()))[-1]["network"] == TINY.name


@pytest.mark.parametrize("content", [b"a,b,c\n1,2,3\n", b"\xff\xfe\n", b"network,engine\n"])
def test_a_table_of_other_columns_is_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(content)
    assert "name another file" in one_line(*WORDS, "--csv", str(path))
    assert path.read_bytes() == content


def test_earlier_results_side_by_side(tmp_path: Path, row: dict[str, Any]) -> None:
    before, after = document([row, {**row, "network": "gone"}], QUICK), document([row], QUICK)
    after = json.loads(json.dumps(after))
    after["networks"][0] |= {"images_per_second": 1.5 * row["images_per_second"], "engine": "native"}
    first, second = tmp_path / "a.json", tmp_path / "b.txt"
    first.write_text(json.dumps(before, indent=1))
    second.write_text(f"some card\n  of text\n{json.dumps(after)}\n")  # what --json printed
    shown = call("bench", "--compare", str(first), str(second)).stdout
    assert "engine eager and native" in shown
    assert next(line for line in shown.splitlines() if line.startswith(TINY.name)).split()[5] == "1.50"
    assert next(line for line in shown.splitlines() if line.startswith("gone")).split()[2] == "-"
    found = json.loads(call("bench", "--compare", str(first), str(second), "--json").stdout)
    assert [(x["network"], x["ratio"]) for x in found["compare"]] == [(TINY.name, pytest.approx(1.5)), ("gone", None)]
    assert found["compare"][0]["memory_ratio"] == 1


@pytest.mark.parametrize(
    "content",
    ["", "no json", "[]", "{}", '{"networks": []}', '{"networks": [{"network": "resnet20"}]}', '{"networks": [3]}'],
)
def test_what_is_no_result_cannot_be_compared(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert "x.json: not a result of plainres bench" in one_line("bench", "--compare", str(path), str(path))


# -- the command


@pytest.mark.usefixtures("small_sizes")
def test_the_command(tmp_path: Path) -> None:
    out, table = tmp_path / "a.json", tmp_path / "a.csv"
    done = call(*WORDS, "--against", "eager", "--out", str(out), "--csv", str(table), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads(out.read_text())
    (row,) = found["networks"]
    assert row["ratio"] == pytest.approx(row["against_ms_per_step"] / row["ms_per_step"], rel=0.9)
    assert {"chip", "torch", "memory_bytes"} <= found["machine"].keys()
    assert len(table.read_text().splitlines()) == 2
    shown = call(*WORDS).stdout
    assert "resnet8: 75,290 parameters, 12,239,498 multiply-adds" in shown
    assert "against eager" not in shown


MISTAKES = [
    (("resnett20",), "did you mean 'resnet20'"),
    (("resnet21",), "depth 21 is not 6n+2"),
    (("resnet20", "--device", "gpu"), "unknown device 'gpu'"),
    (("resnet20", "--device", "cuda:99"), "device 'cuda"),
    (("resnet20", "--precision", "half"), "unknown precision 'half'"),
    (("resnet20", "--device", "cpu", "--precision", "tf32"), "precision 'tf32' needs an NVIDIA GPU"),
    (("resnet20", "--engine", "nativ"), "did you mean 'native'"),
    (("resnet20", "--against", "keras"), "unknown baseline 'keras'; there are: eager"),
    (("resnet20", "--batch", "0"), "batch_size is 0"),
    (("resnet20", "--batch", "many"), "--batch"),
    (("resnet20", "--rounds", "0"), "rounds"),
    (("resnet20", "--seconds", "-1"), "--seconds above 0"),
    (("resnet20", "resnet110", "--device", "cpu", "--batch", "65536"), "at batch 65536 needs at least"),
    (("resnet20", "--out", "no/such/a.json"), "there is no folder"),
    (("resnet20", "--csv", "no/such/a.csv"), "there is no folder"),
    (("resnett20", "--csv", "a.csv", "--out", "a.json"), "did you mean 'resnet20'"),
    (("resnet20", "--compare", "a.json", "b.json"), "--compare reads two earlier results"),
    (("--compare", "a.json"), "requires 2 arguments"),
    (("--compare", "no-a.json", "no-b.json"), "no-a.json: No such file"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda value: value if isinstance(value, str) else None)
def test_a_mistake_is_one_line_and_measures_nothing(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "available", lambda device: 16 * 2**30)
    monkeypatch.setattr(benches, "Turns", None)
    assert said in one_line("bench", *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_sizes")
def test_an_interrupt_leaves_the_rows_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    take_round = benches.Turns.take_round

    def interrupted(self: benches.Turns, number: int) -> None:
        made.append(self.spec.name)
        if self.spec.name == "plain8":
            raise KeyboardInterrupt
        take_round(self, number)

    monkeypatch.setattr(benches.Turns, "take_round", interrupted)
    done = call(*WORDS, "plain8", "--csv", str(tmp_path / "a.csv"))
    assert (done.exit_code, done.stderr) == (130, "plainres: interrupted\n")
    assert made == ["resnet8", "resnet8", "plain8"]
    assert "resnet8: 75,290 parameters" in done.stdout
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 2


def test_the_docs_show_a_result_with_its_command(row: dict[str, Any]) -> None:
    render = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "render.py"))
    table = render["speed_table"](document([row, {**row, "ratio": None}], QUICK))
    assert "`plainres bench resnet8-custom" in table
    assert table.splitlines()[-1].split("|")[1:3] == [f" {TINY.name} ", " eager "]
    assert table.splitlines()[-1].split("|")[5] == " – "
    assert len({line.count("|") for line in table.splitlines()[2:]}) == 1


def test_settings_are_put_back() -> None:
    threads = torch.get_num_threads()
    measured = bench([TINY, NetworkSpec(depth=8, width=5)], QUICK, sizes=SMALL)
    with contextlib.closing(measured):  # type: ignore[type-var]
        next(measured)
        assert torch.get_num_threads() == threads
        assert not torch.are_deterministic_algorithms_enabled()
