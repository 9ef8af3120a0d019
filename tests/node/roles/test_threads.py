"""Workers and servers compute on the job's threads, whatever the host has."""

from pathlib import Path

import pytest

from bench.roles import RoleProcesses

pytestmark = pytest.mark.processes

THREADS = 3
SCRIPT = Path(__file__).parents[2] / "sdk" / "run" / "small.py"
TELLS = """
import os, pathlib, sys, threading, time
def look():
    get = getattr(sys.modules.get("torch"), "get_num_threads", None)
    if get is not None and "dmi_tensor.optimizers" in sys.modules:
        path = pathlib.Path(os.environ["TELL"]) / str(os.getpid())
        new = path.with_suffix(f".{threading.get_ident()}")
        new.write_text(str(get()))
        new.replace(path)
def tell():
    while True:  # each time in a new thread: one that has asked torch keeps what it was told
        threading.Thread(target=look, daemon=True).start()
        time.sleep(0.02)
threading.Thread(target=tell, daemon=True).start()
"""


def test_workers_and_servers_compute_on_the_job_s_threads(tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.mkdir()
    (tmp_path / "sitecustomize.py").write_text(TELLS)
    with RoleProcesses(
        tmp_path / "roles",
        SCRIPT,
        workers=1,
        servers=1,
        leaves=None,
        args=("none",),
        threads=THREADS,
        environment={"PYTHONPATH": str(tmp_path), "TELL": str(told)},
    ) as roles:
        names = {child.process.pid: child.key.role for child in roles.children}
        roles.introduce()
        said = roles.finish()
    seen = {names[int(path.name)]: path.read_text() for path in told.iterdir() if path.name.isdigit()}
    assert seen == {"worker": str(THREADS), "server": str(THREADS)}, said
