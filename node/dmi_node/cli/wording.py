"""Jobs and members in words and columns: plain text, made of what the mesh has said."""

from typing import Any

from dmi_protocol.sizes import in_words


def line_of(job: dict[str, Any], *, with_reason: bool = False) -> str:
    """``running: step 120 of 480, 1,811 samples/s, loss 0.0164``: of that, what is known; ``with_reason`` a job that
    recovers says what from, instead."""
    if with_reason and job["state"] == "recovering" and job["reason"]:
        return f"{job['state']}: {job['reason']}"
    known = [
        None if job["step"] is None else f"step {progress_of(job)}",
        None if job["samples_per_second"] is None else f"{number(job['samples_per_second'], 0)} samples/s",
        None if job["loss"] is None else f"loss {number(job['loss'], 4)}",
    ]
    said = ", ".join(part for part in known if part is not None)
    return f"{job['state']}: {said}" if said else str(job["state"])


def refused(status: dict[str, Any]) -> str:
    """What the node refused, by reason."""
    return "refused: " + ", ".join(f"{count} {reason}" for reason, count in sorted(status["refused"].items()))


def troubles(status: dict[str, Any]) -> list[str]:
    """A sentence for each member that is alive and not well, and for what this node leaves alone."""
    found = [member["trouble"] for member in status["members"] if member.get("trouble")]
    return found + [
        f"{status['node']} leaves alone what ended it twice, {subject} ({line}): please report it; remove crashes.json from its "
        "home and start it again to have it tried again"
        for subject, line in status.get("set_aside", {}).items()
    ]


def progress_of(job: dict[str, Any]) -> str:
    """``step 120 of 480``."""
    if job["step"] is None:
        return "-"
    return f"{job['step']} of {job['steps']}" if job["steps"] is not None else str(job["step"])


def number(value: float | None, digits: int) -> str:
    """A number for people."""
    return "-" if value is None else f"{value:,.{digits}f}"


def job_row(job: dict[str, Any]) -> list[str]:
    """A job in a table."""
    return [
        job["id"],
        job["state"],
        progress_of(job),
        number(job["samples_per_second"], 0),
        number(job["loss"], 4),
        job["reason"] or "",
    ]


JOB_COLUMNS = ("job", "state", "step", "samples/s", "loss", "reason")
MEMBER_COLUMNS = ("node", "state", "address", "voter", "pid", "roles")
WHOLE_MEMBER_COLUMNS = (*MEMBER_COLUMNS[:-1], "left for jobs", MEMBER_COLUMNS[-1])


def member_row(member: dict[str, Any]) -> list[str]:
    """A member in a table."""
    by_job: dict[str, list[str]] = {}
    for role in member["roles"]:
        by_job.setdefault(role["job"], []).append(role["role"])
    parts = [", ".join(sorted(roles)) for roles in by_job.values()] or ["witness"] * bool(member.get("witness"))
    if len(parts) > 1:
        parts = [f"{job}: {part}" for job, part in zip(by_job, parts, strict=True)]
    voter = "yes" if member["voter"] else "no"
    return [member["name"], member["state"], member["address"], voter, str(member["pid"] or "-"), "; ".join(parts)]


def whole_member_row(member: dict[str, Any]) -> list[str]:
    """The same, and what it could still promise to jobs."""
    *first, roles = member_row(member)
    return [*first, _left(member), roles]


def _left(member: dict[str, Any]) -> str:
    """``1 of 2 cpus, 8.0 of 24.0 GB``; nothing of a witness, and of who has not said what it has."""
    if member.get("witness") or not (member.get("cpus") or member.get("memory")):
        return "-"
    memory, whole = (in_words(max(0, member[key])) for key in ("memory_left", "memory"))
    short = memory.partition(" ")[0] if memory.partition(" ")[2] == whole.partition(" ")[2] else memory
    return f"{max(0, member['cpus_left'])} of {member['cpus']} cpus, {short} of {whole}"


DEPLOYMENT_COLUMNS = ("served", "state", "replicas", "gateways", "requests/s", "p50 ms", "p99 ms", "at")


def deployment_row(found: dict[str, Any]) -> list[str]:
    """What is served in a table; of its gateways' addresses the first."""
    return [
        f"{found['model']}:{found['version']}"
        + (f" (and {found['share']}% :{found['canary']})" if found["canary"] is not None else ""),
        found["state"],
        ", ".join(found["replicas"]) + (f" ({found['stages']} stages)" if found["stages"] > 1 else ""),
        ", ".join(found["gateways"]),
        number(found["requests_per_second"], 0),
        number(found["p50_ms"], 1),
        number(found["p99_ms"], 1),
        found["urls"][0] if found["urls"] else "-",
    ]


MODEL_COLUMNS = ("model", "format", "size", "in", "out", "nodes")


def model_row(model: dict[str, Any]) -> list[str]:
    """A version of a model in a table."""
    ins, outs = (", ".join(map(tensor, model[side])) for side in ("inputs", "outputs"))
    return [model["id"], model["format"], in_words(model["size_bytes"]), ins, outs, ", ".join(model["nodes"])]


def model_lines(model: dict[str, Any]) -> list[str]:
    """A version of a model at length."""
    made = f" by {model['factory']}" if model["factory"] else ""
    return [
        f"{model['id']}  {model['format']}{made}, {in_words(model['size_bytes'])}, {model['hash'][:16]}",
        *(f"  in   {tensor(info)}" for info in model["inputs"]),
        *(f"  out  {tensor(info)}" for info in model["outputs"]),
        f"  on   {', '.join(model['nodes']) or 'no node that is known'}",
        *(f"  cut  into {len(sizes)} stages of {', '.join(map(in_words, sizes))}" for sizes in model["cuts"]),
    ]


DISK_COLUMNS = ("node", "models", "jobs", "arriving", "unclaimed", "quota", "free", "of")


def disk_row(disk: dict[str, Any]) -> list[str]:
    """A node's disk in a table."""
    names = ("models", "jobs", "arriving", "unclaimed", "quota", "free", "total")
    values = [disk[f"{name}_bytes"] for name in names]
    return [disk["node"], *("-" if value is None else in_words(value) for value in values)]


def disk_rows(disk: dict[str, Any]) -> list[list[str]]:
    """What lies on it, the largest first."""
    owners = {**(disk["model_bytes_by_id"] or {}), **(disk["job_bytes_by_id"] or {})}
    return [
        [disk["node"], owner, in_words(count)] for owner, count in sorted(owners.items(), key=lambda item: -item[1])
    ]


def tensor(info: dict[str, Any]) -> str:
    """``x float32[N,3,*,*]``: N counts inputs, * may be any size."""
    sizes = ["*" if size is None else str(size) for size in info["shape"]]
    if info["is_batched"] and sizes and sizes[0] == "*":
        sizes[0] = "N"
    return f"{info['name']} {info['dtype']}[{','.join(sizes)}]"


def inferring(job: dict[str, Any], before: int, seconds: float) -> str:
    """``running: 640 of 1,797 inputs, 2 failed, 210 inputs/s, 6 s left``; ``before`` were done ``seconds`` ago."""
    if job["state"] != "running":
        return f"{job['state']}: {job['reason']}" if job["reason"] else str(job["state"])
    done, total = job["step"] or 0, job["steps"] or 0
    speed = (done - before) / max(seconds, 1e-3)
    left = f", {(total - done) / speed:,.0f} s left" if done > before else ""
    failed = f", {job['failed_inputs']:,} failed" if job["failed_inputs"] else ""
    return f"running: {done:,} of {total:,} inputs{failed}, {speed:,.0f} inputs/s{left}"


def inferred(manifest: dict[str, Any], results: str) -> str:
    """What came of an inference."""
    failed = manifest["failed"]
    causes = ", ".join(f"{count} {cause}" for cause, count in manifest["errors"].items())
    bad = f"; {failed:,} failed ({causes})" if failed else ""
    return f"{manifest['inputs']:,} inputs in {manifest['seconds']:,.1f} s{bad}: {results}"


def survives(status: dict[str, Any]) -> str:
    """Which losses can be survived now."""
    voters = [member for member in status["members"] if member["voter"]]
    alive = sum(member["state"] == "alive" and not member.get("trouble") for member in voters)
    spare = alive - (len(voters) // 2 + 1)
    if spare < 0:
        return "nothing can be decided until voters come back"
    return f"{spare} of {len(voters)} voters can be lost now" if spare else "no voter can be lost now"


def headline(seen: dict[str, Any]) -> str:
    """One line about the whole mesh."""
    if not seen["quorum"]:
        return f"mesh {seen['mesh']}: {seen['quorum_reason']}"
    return f"mesh {seen['mesh']}: coordinator {seen['coordinator']}, term {seen['term']}; {survives(seen)}"


def one_line(text: str) -> str:
    """``text`` without what would move the cursor or change colours: some of it was chosen by job code."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
