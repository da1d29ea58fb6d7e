"""One training: the loop, and everything that makes it go on after a stop."""

import math
import time
from typing import Any, NoReturn

from plainres import checkpoint, memory, outcome, plan, weights
from plainres import job as jobs
from plainres.clock import Clock
from plainres.errors import Diverged, Stopped
from plainres.evaluation import Evaluation, evaluate_part
from plainres.interrupt import StopRequest
from plainres.outcome import Reporter, RunResult
from plainres.responses import responses
from plainres.runlog import RunDirectory
from plainres.schedule import learning_rate, warms_up_by_error
from plainres.step import WINDOW, Engine, is_due


class Training:
    """The state of one run between two steps."""

    keep_every = 0
    checkpoint_seconds = 60.0

    def __init__(
        self, job: jobs.Job, run: RunDirectory, settled: plan.Plan, engine: Engine, report: Reporter, stop: StopRequest
    ) -> None:
        self.job, self.run, self.plan, self.report, self.stop = job, run, settled, report, stop
        self.world = job.world
        self.engine, self.window, recipe = engine, engine.work.window, job.recipe
        self.normalization = job.data.normalization(recipe)
        # A run that keeps validation images is there to choose by: it never looks at the test set.
        self.held_out = job.data.part("val" if recipe.validation_images else "test", recipe.validation_images)
        self.done = 0  # steps
        self.saved_at = -1  # the step of the last checkpoint
        self.warmup_end: int | None = None
        self.clock, self.evaluation_seconds = Clock(job.device), 0.0
        self.compile_seconds = 0.0  # before the last resume
        self.last_window: dict[str, Any] = {}  # the line of the last hundred steps
        self.last: Evaluation | None = None
        self._logged_seconds = 0.0
        self._saved_time = time.perf_counter()

    # -- the loop

    def loop(self) -> None:
        """Step until the recipe's last one, or until asked to stop."""
        self.begin()
        while not self.finished:
            self.advance()

    def begin(self) -> None:
        """Let the first step come."""
        self.job.network.train()
        self.clock.start()

    @property
    def finished(self) -> bool:
        """Whether every step is done."""
        return self.done >= self.job.recipe.steps

    def advance(self) -> None:
        """One step, and whatever is due after it."""
        recipe = self.job.recipe
        rate = learning_rate(self.done, recipe, depth=self.job.depth, warmup_end=self.warmup_end)
        self.engine.step(self.done, rate)
        self.done += 1
        if self.done % WINDOW == 0 or self.finished:
            with self.clock.paused():
                self.log_window(rate)
        elif self.job.device.type == "cpu" and self.done % 10 == 0:
            self.report_progress(self.window.read(self.done))
        self.after_step()

    def after_step(self) -> None:
        """Keep weights, evaluate and save a checkpoint where it is time; stop where asked to."""
        last = self.finished
        evaluate, keep = last or is_due(self.done, self.plan.eval_every), is_due(self.done, self.keep_every)
        stop, save = self.asked(save=last or time.perf_counter() - self._saved_time >= self.checkpoint_seconds)
        if not (evaluate or keep or save or stop):
            return
        with self.clock.paused():
            if keep:
                self.world.share(lambda: self.save_weights(f"weights-{self.done}.safetensors", {}))
            if evaluate:
                self.evaluate()
            stop = self.stopping()
            if save or stop:
                self.save()
            if stop:
                self.leave()

    def asked(self, *, save: bool) -> tuple[bool, bool]:
        """Whether a process of the run was asked to stop, and whether one finds it time to save: all then do."""
        status, due = self.world.most(self.stop.exit_status or 0, save)
        if status:
            self.stop.exit_status = status
        return status > 0, due > 0

    def stopping(self) -> bool:
        """Whether a process of the run was asked to stop."""
        return self.asked(save=False)[0]

    def log_window(self, rate: float) -> None:
        """Write the line of the window that ends here, and see whether the warm-up does."""
        self.check_finite()
        read = self.window.read(self.done)
        speed = read["images"] / max(self.clock.seconds - self._logged_seconds, 1e-9)
        self._logged_seconds = self.clock.seconds
        self.last_window = {"kind": "train", "step": self.done, **read, "learning_rate": rate}
        self.run.log({**self.last_window, "seconds": self.clock.seconds, "images_per_second": speed})
        self.report_progress(read)
        recipe = self.job.recipe
        warming = warms_up_by_error(recipe, self.job.depth) and self.warmup_end is None
        if warming and self.done % WINDOW == 0 and read["error"] < recipe.error_warmup_until:
            self.warmup_end = self.done
            self.run.log({"kind": "warmup_end", "step": self.done, "error": read["error"]})

    def evaluate(self) -> None:
        """Evaluate the part held out and log it; a stop asked for on the way leaves it for the resume."""
        self.check_finite()
        before = time.perf_counter()
        self.last = found = self.held_out_evaluation()
        self.evaluation_seconds += time.perf_counter() - before
        if not math.isfinite(found.loss):
            raise self.diverged(self.done, f"after step {self.done:,} the {found.split} loss is not finite")
        line = {"kind": found.split, "step": self.done, "loss": found.loss, "error": found.error}
        line |= {"misses": found.misses, "images": found.images}
        self.run.log({**line, "seconds": self.clock.seconds})
        self.report.evaluated({**line, "train_error": self.last_window.get("error")})

    def held_out_evaluation(self) -> Evaluation:
        """Evaluate on the part held out; a stop asked for on the way saves and leaves."""
        try:
            return evaluate_part(
                self.job.network,
                self.held_out,
                self.normalization,
                self.job.data.classes,
                logits=self.engine.logits,
                batch=self.plan.eval_batch,
                should_stop=self.stopping,
                world=self.world,
            )
        except Stopped:
            if not self.stop:  # another process is gone, or failed: that is what to say
                raise
            self.save()
            self.leave()

    # -- going on after a stop

    def resume(self) -> None:
        """Take up the newest whole checkpoint, if there is one, and cut the metrics to its step."""
        state, damaged = self.world.share(lambda: checkpoint.load(self.run.path))
        for line in damaged:
            self.report.notice(line)
        if state is not None:
            self.restore(state)
        kept = self.run.start_metrics(after=self.done)
        self.report.started(self.job, self.run.path, self.done, self.held_out.name)
        due = self.done > 0 and (self.done == self.job.recipe.steps or is_due(self.done, self.plan.eval_every))
        if due and not any(x["kind"] == self.held_out.name and x["step"] == self.done for x in kept):
            self.evaluate()

    def restore(self, state: dict[str, Any]) -> None:
        """Set everything as it was when `state` was saved."""
        self.job.network.load_state_dict(state["network"])
        self.job.optimizer.load_state_dict(state["optimizer"])
        self.window.restore(state["window"])
        self.done = self.saved_at = state["step"]
        self.warmup_end, self.last_window = state["warmup_end"], state["last_window"]
        self.clock.seconds, self.evaluation_seconds = state["seconds"], state["evaluation_seconds"]
        self.compile_seconds = state["compile_seconds"]
        self._logged_seconds = state["logged_seconds"]

    def save(self) -> None:
        """Save a checkpoint of this step, unless there is one; the metrics before it are on the disk first."""
        if self.done == self.saved_at:
            return
        self.check_finite()
        network = self.job.network.state_dict()
        if not all(bool(tensor.isfinite().all()) for tensor in network.values()):
            raise self.diverged(self.done, f"after step {self.done:,} the weights are not finite")
        self.run.flush()
        state = {
            "network": network,
            "optimizer": self.job.optimizer.state_dict(),
            "window": self.window.state(),
            "warmup_end": self.warmup_end,
            "last_window": self.last_window,
            "seconds": self.clock.seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "compile_seconds": self.compile_seconds + self.engine.compile_seconds,
            "logged_seconds": self._logged_seconds,
        }
        self.world.share(lambda: checkpoint.save(self.run.path, self.done, state))
        self.saved_at = self.done
        self._saved_time = time.perf_counter()

    def leave(self) -> NoReturn:
        """Leave by an exception that says how to go on."""
        message = f"stopped after step {self.done:,} of {self.job.recipe.steps:,}, saved in {self.run.path}"
        raise Stopped(f"{message}; the same command goes on", exit_status=self.stop.act())

    def check_finite(self) -> None:
        """Diverged if a loss of this window is not finite: no checkpoint is written over the last good one."""
        bad = self.window.first_not_finite(self.done) if self.done else None
        if bad is not None:
            raise self.diverged(bad, f"the loss of step {bad:,} is not finite")

    def diverged(self, step: int, what: str) -> Diverged:
        """The error that says what is not finite, at which learning rate, and what is left."""
        rate = learning_rate(step, self.job.recipe, depth=self.job.depth, warmup_end=self.warmup_end)
        good = f"the last good checkpoint is of step {self.saved_at:,}" if self.saved_at > 0 else "no checkpoint yet"
        return Diverged(f"{what} (learning rate {rate:g}); {good}, in {self.run.path}")

    def report_progress(self, read: dict[str, Any]) -> None:
        """Tell the reporter where the run is."""
        self.report.progress(self.done, read["loss"], read["error"], self.clock.elapsed())

    # -- the end

    def finish(self) -> RunResult:
        """Write what a finished run leaves: responses, predictions, weights, and last of all the result."""
        # none yet where a stop came between the last step's line and the result
        found = self.last or self.held_out_evaluation()
        replanned = plan.replanned(self.run)
        result = self.world.share(lambda: self.write_results(found, replanned=replanned))
        finished = RunResult(self.run.path, result)
        self.report.finished(finished)
        return finished

    def write_results(self, found: Evaluation, *, replanned: bool) -> dict[str, Any]:
        """Write all that `finish` leaves; the content of `result.json`."""
        inputs, path = self.normalization, self.run.path
        self.run.write_json("responses.json", responses(self.job.network, self.held_out.images, inputs))
        outcome.write_predictions(path / "predictions.safetensors", found.logits, self.held_out)
        tested = {"split": found.split, "misses": found.misses, "images": found.images}
        digest = self.save_weights("weights.safetensors", tested)
        result = {
            **outcome.facts(self.job, found, self.last_window),
            "seconds": self.clock.seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "compile_seconds": self.compile_seconds + self.engine.compile_seconds,
            "engine": self.plan.engine,
            "peak_memory_bytes": memory.peak(self.job.device),
            "images_per_second": self.done * self.job.recipe.batch_size / self.clock.seconds,
            "warmup_end": self.warmup_end,
            "replanned": replanned,
            "weights_sha256": digest,
        }
        self.run.flush()
        self.run.write_json("result.json", result)
        return result

    def save_weights(self, name: str, tested: dict[str, Any]) -> str:
        """Write the network's weights with what is known of them; returns the file's SHA-256."""
        about = {**outcome.about(self.job), **tested, "steps": self.done, "run": self.run.hash}
        return weights.save(self.run.path / name, self.job.network, self.normalization, about)
