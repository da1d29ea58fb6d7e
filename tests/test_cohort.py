"""Several seeds in turn give what each gives alone."""

import signal
from pathlib import Path

import pytest

from conftest import TINY
from plainres import recipes
from plainres.cohort import train_seeds
from plainres.data.dataset import Dataset
from plainres.errors import Diverged, Stopped, UserError
from plainres.outcome import Reporter
from plainres.run import Conduct, train
from plainres.statistics import spread

SHORT = recipes.resolve("quick", ["batch_size=20", "steps=30", "warmup_steps=5", "learning_rate=0.1", "name=short"])


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_each_is_as_alone(at_once: int, small: Dataset, tmp_path: Path) -> None:
    together = train_seeds(TINY, SHORT, small, seeds=[3, 1, 2], out=tmp_path / "together", at_once=at_once)
    assert [result.facts["seed"] for result in together] == [3, 1, 2]
    for result in together:
        alone = train(TINY, SHORT, small, seed=result.facts["seed"], out=tmp_path / "alone")
        assert alone.facts["weights_sha256"] == result.facts["weights_sha256"]
        assert alone.run_dir.name == result.run_dir.name
    assert len({result.facts["weights_sha256"] for result in together}) == 3
    again = train_seeds(TINY, SHORT, small, seeds=[1, 2, 3], out=tmp_path / "together", at_once=at_once)
    assert all(result.already_finished for result in again)


class StopAt(Reporter):
    def __init__(self, step: int) -> None:
        self.step = step

    def progress(self, done: int, loss: float, error: float, seconds: float) -> None:
        if done == self.step:
            signal.raise_signal(signal.SIGINT)


def test_a_stop_saves_all_of_them(small: Dataset, tmp_path: Path) -> None:
    makers = {0: Reporter(), 1: StopAt(20), 2: Reporter()}
    with pytest.raises(Stopped) as stopped:
        train_seeds(TINY, SHORT, small, seeds=[0, 1, 2], out=tmp_path, at_once=3, reporter=makers.__getitem__)
    assert stopped.value.exit_status == 130
    assert len(list(tmp_path.glob("*/checkpoint.pt"))) == 3
    results = train_seeds(TINY, SHORT, small, seeds=[0, 1, 2], out=tmp_path, at_once=2)
    alone = train(TINY, SHORT, small, seed=1, out=tmp_path / "alone")
    assert results[1].facts["weights_sha256"] == alone.facts["weights_sha256"]


def test_one_that_diverges_does_not_take_the_others_with_it(small: Dataset, tmp_path: Path) -> None:
    wild = recipes.resolve(SHORT, ["learning_rate=1e30", "schedule=cosine"])
    with pytest.raises(Diverged, match=r"s5-.*; .*s6-"):
        train_seeds(TINY, wild, small, seeds=[5, 6], out=tmp_path, at_once=2, conduct=Conduct(eval_every=0))


def test_seeds_are_given_once(small: Dataset, tmp_path: Path) -> None:
    for seeds in ([], [1, 1]):
        with pytest.raises(UserError, match="each seed once"):
            train_seeds(TINY, SHORT, small, seeds=seeds, out=tmp_path)


def test_spread() -> None:
    found = spread([0.07, 0.08, 0.09])
    assert (found.n, found.least, found.most) == (3, 0.07, 0.09)
    assert found.mean == pytest.approx(0.08)
    assert found.std == pytest.approx(0.01)
    assert spread([0.5]).std is None
