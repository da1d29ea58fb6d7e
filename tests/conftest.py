"""Shared by all tests: data and caches in a folder of their own, and a small data set."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from plainres.data.dataset import Dataset, dataset
from plainres.spec import NetworkSpec

TINY = NetworkSpec(depth=8, width=4)
"""The smallest member of the family, for tests that train."""


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test sees, or fills, the stores and the compiled kernels of the person who runs it."""
    home = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAINRES_DATA", str(home))
        patch.setenv("PLAINRES_CACHE", str(home / "cache"))
        yield home


@pytest.fixture(scope="session")
def small(data_home: Path) -> Dataset:
    """300 training and 100 test images of the generated data set."""
    return dataset("generated:train=300,test=100")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """Leave the process as found: no test may change what another computes."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()
