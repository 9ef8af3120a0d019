"""Every process that imports torch computes on the job's threads: torch's own default is the number of the host's processors."""

import ast
from functools import cache

from tests.architecture.sources import Source, every_source, imports

ELSEWHERE = {
    "dmi.run.begin": "the script's process: dmi.init sets them",
    "dmi.infer.compute": "live, which a replica and the fork server call, sets them",
    "dmi.models.trial": "answer sets them",
    "dmi.models.cut": "answer sets them",
}


@cache
def modules() -> dict[str, Source]:
    return {source.module: source for source in every_source()}


def reaches_torch(module: str, seen: set[str]) -> bool:
    if module not in modules() or module in seen:
        return module.partition(".")[0] == "torch"
    seen.add(module)
    return any(reaches_torch(found.module, seen) for found in imports(modules()[module]) if not found.nested)


def starts(source: Source) -> bool:
    """Is it a process's first module?"""
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in source.tree.body
    )


def calls(source: Source) -> set[str]:
    return {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
    }


def test_every_process_with_torch_sets_its_threads() -> None:
    found = [source for source in every_source() if starts(source) and reaches_torch(source.module, set())]
    assert {"dmi.run.worker", "dmi_node.roles.server", "dmi.infer.compute"} <= {source.module for source in found}
    silent = [s.module for s in found if not calls(s) & {"set_num_threads", "warm_up"} and s.module not in ELSEWHERE]
    assert silent == [], "set torch's threads first of all: the job's, or one"


def test_what_sets_them_elsewhere_does() -> None:
    for module in ("dmi_tensor.optimizers", "dmi.run.begin", "dmi.infer.compute", "dmi.models.answering"):
        assert "set_num_threads" in calls(modules()[module])
