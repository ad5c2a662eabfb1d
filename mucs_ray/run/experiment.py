"""An experiment runs one recipe with several seeds, each in its own run directory, and reports over all of them.

<run>/experiment.json   the seeds
<run>/seed-1/ ...       complete run directories
<run>/report.html       the counterfactual test, the items of all seeds pooled
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from mucs_ray import storage
from mucs_ray.evaluation.analysis import Analysis
from mucs_ray.pipeline.graph import REPORT_LAYOUT, UNRELATED, Pipeline, RemovalTest
from mucs_ray.pipeline.method_stages import recipe_slice
from mucs_ray.report.document import Report
from mucs_ray.results import counterfactual
from mucs_ray.results import report as summary
from mucs_ray.run.driver import finish, run
from mucs_ray.run.seeds import folder, record_seeds
from mucs_ray.store.run import Stage, State


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The runs of several seeds, which differ only in the seed."""

    run_url: str
    pipelines: tuple[Pipeline, ...]

    @property
    def seeds(self) -> list[int]:
        """The seeds in the order in which they were given."""
        return [pipeline.recipe.seed for pipeline in self.pipelines]

    def report(self) -> Stage:
        """Return the stage of the report over all seeds."""
        first = self.pipelines[0]
        keys = dict.fromkeys(first.compared_keys())
        for mode in first.recipe.remove.modes:
            methods = counterfactual.evaluated_methods(self.pipelines, mode)
            keys |= dict.fromkeys(first.key(RemovalTest(method, mode)) for method in methods)
        compared = [f"evaluate/{key}" for key in (*keys, UNRELATED)]
        inputs = {
            f"{folder(pipeline.recipe.seed)}/{name}": pipeline.stage(name).fingerprint
            for pipeline in self.pipelines
            for name in compared
        }
        reads = {"layout": REPORT_LAYOUT, "seeds": self.seeds, **recipe_slice(first.recipe, "name")}
        return Stage(run_url=self.run_url, name="report", reads=reads, inputs=inputs)

    def report_state(self) -> State:
        """Return the state of the report over all seeds."""
        if not storage.exists(storage.join(self.run_url, "report.html")):
            return State(status="missing", reason="no report.html")
        return self.report().state()

    def run(self) -> list[str]:
        """Run the missing stages of all seeds side by side, and return the names of the stages that ran."""
        record_seeds(self.run_url, self.seeds)
        done = [f"{folder(pipeline.recipe.seed)}/{name}" for pipeline, name in run(self.pipelines, "evaluate")]
        if self.report_state().status != "done":
            started = time.monotonic()
            finish(self.pipelines[0], self.report(), self.write(), started)
            done.append("report")
        return done

    @cached_property
    def analyses(self) -> tuple[Analysis, ...]:
        """The statistics over all seeds, that of the headline first; every evaluation must be done."""
        return counterfactual.analyses_of(self.pipelines)

    def write(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Publish the report over all seeds, and return its digests and facts."""
        analyses = self.analyses
        return summary.publish(self.report(), self.run_url, self.document(analyses), self.as_json(analyses), analyses)

    def document(self, analyses: Sequence[Analysis]) -> Report:
        """Lay out the report on the counterfactual test; each seed's own report has the attributions of its items."""
        first, analysis = self.pipelines[0], analyses[0]
        own = ("training", "validation loss", "null loss", "scoring", "fingerprint")
        facts = {name: value for name, value in summary.run_facts(first) if name not in own}
        facts |= {"recipe": f"{first.recipe.name}, seeds {', '.join(str(seed) for seed in self.seeds)}"}
        facts |= {"reports of the seeds": ", ".join(f"{folder(seed)}/report.html" for seed in self.seeds)}
        return Report(
            title=f"{first.recipe.name}, {len(self.seeds)} seeds",
            subtitle=f"{analysis.num_items} generated images, {analysis.num_images:,} training images",
            methods=summary.method_lines(first),
            top_k=analysis.top_k,
            num_training_images=analysis.num_images,
            facts=tuple(facts.items()),
            stages=tuple(self.stage_times()),
            items=(),
            evaluations=counterfactual.sections(self.pipelines, analyses),
            hubs=counterfactual.hubs_report(self.pipelines, [tested.method for tested in analysis.methods]),
        )

    def stage_times(self) -> list[tuple[str, str]]:
        """Return the name and wall time of each stage, summed over the seeds."""
        times: dict[str, float] = {}
        for pipeline in self.pipelines:
            for name, seconds in summary.seconds_by_stage(pipeline.stages | pipeline.evaluated):
                times[name] = times.get(name, 0.0) + seconds
        return [(name, f"{seconds:.1f} s") for name, seconds in times.items()]

    def as_json(self, analyses: Sequence[Analysis]) -> dict[str, Any]:
        """Return the report as JSON values, for other programs."""
        runs = {str(pipeline.recipe.seed): pipeline.run_url for pipeline in self.pipelines}
        hubs = counterfactual.hubs_by_method(self.pipelines, [tested.method for tested in analyses[0].methods])
        return {
            "run": self.run_url,
            "seeds": self.seeds,
            "runs": runs,
            "hubs": {method: asdict(of_method) for method, of_method in hubs.items()},
            **counterfactual.as_json(analyses),
        }
