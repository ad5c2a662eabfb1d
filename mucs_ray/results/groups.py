"""What a finished group attribution says, for the terminal and for --json."""

from typing import Any

from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.groups_stages import RESULT


def as_json(pipeline: Pipeline) -> dict[str, Any]:
    """Return the groups, the agreement of each method, the shares in short, and the URLs of the files."""
    stage = pipeline.stage(RESULT)
    facts, manifest = stage.facts(), stage.manifest()
    known = {key: facts[key] for key in ("groups", "sizes", "agreement", "chance", "shares") if key in facts}
    return {**known, "files": [stage.url(file) for file in sorted(manifest.files if manifest else ())]}
