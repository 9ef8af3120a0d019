"""A script ends as under plain Python, and what it has started ends as it should."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

BEGIN = """
import atexit, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from dmi.run.script import run_script
from dmi.run.finish import finish
script, within_s = sys.argv[1:]
ending = run_script(Path(script), ())
finish(float(within_s))
print("finished", ending, flush=True)
os._exit(0)
"""


def run(directory: Path, text: str, within_s: float = 20) -> subprocess.CompletedProcess[str]:
    """The script in a process that would go on after it."""
    (directory / "script.py").write_text(text)
    done = python(directory, "-c", BEGIN, "script.py", str(within_s))
    assert done.returncode == 0, done.stderr
    return done


def python(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_files_handlers_and_threads_are_brought_to_their_end(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
import atexit, threading, time
from concurrent.futures import ThreadPoolExecutor
log = open("log.txt", "w")
def note(text): log.write(text)
note("kept")
atexit.register(lambda: open("handler.txt", "w").write("run"))
def late():
    time.sleep(0.5)
    open("late.txt", "w").write("done")
threading.Thread(target=late).start()
pool = ThreadPoolExecutor(1)
pool.submit(lambda: (time.sleep(0.2), open("pool.txt", "w").write("done")))
""",
    )
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == {
        "log.txt": "kept",
        "handler.txt": "run",
        "late.txt": "done",
        "pool.txt": "done",
    }


def test_a_thread_that_does_not_end_is_named_and_left(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(
        tmp_path, "import threading, time\nthreading.Thread(target=time.sleep, args=(50,), name='uploads').start()", 0.3
    )
    assert time.monotonic() - began < 30
    assert "threads still run 0.3 s after its end, and are left: uploads" in done.stderr
    assert "finished None" in done.stdout


@pytest.mark.parametrize(
    "end",
    [
        "",
        pytest.param("sys.exit(0)", marks=pytest.mark.deep),
        pytest.param("raise ValueError('planted')", marks=pytest.mark.deep),
    ],
)
def test_a_forked_child_comes_to_an_end_of_its_own(tmp_path: Path, end: str) -> None:
    done = run(
        tmp_path,
        f"""
import atexit, os, sys
atexit.register(lambda: print("handler", os.getpid() == parent, flush=True))
parent = os.getpid()
if os.fork():
    print("waited", os.wait()[1], flush=True)
else:
    {end or "pass"}
""",
    )
    assert done.stdout.count("finished") == 1
    assert "handler False" in done.stdout
    assert "handler True" in done.stdout
    assert ("waited 0" in done.stdout) == ("raise" not in end)
    assert ("planted" in done.stderr) == ("raise" in end)


CHILD = """
import multiprocessing, os, sys, torch, dmi
{guard}
def child():
    print("child runs", flush=True)
def start():
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
    print("ended with", process.exitcode, flush=True)
{body}
"""


def plain(directory: Path, guard: str, body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (directory / "script.py").write_text(CHILD.format(guard=guard, body=body))
    return python(directory, "script.py", **environment)


def test_a_child_that_imports_the_script_does_not_train(tmp_path: Path) -> None:
    done = plain(
        tmp_path, "run = dmi.init(); print('trained in', __name__, flush=True)", "if __name__ == '__main__': start()"
    )
    assert "trained in __main__" in done.stdout
    assert "trained in __mp_main__" not in done.stdout
    assert "ended with 1" in done.stdout
    assert "below `if __name__ ==" in done.stderr


@pytest.mark.deep
def test_with_a_guard_it_does_what_it_is_for(tmp_path: Path) -> None:
    done = plain(tmp_path, "", "if __name__ == '__main__':\n    run = dmi.init()\n    start()")
    assert "child runs" in done.stdout
    assert "ended with 0" in done.stdout


def test_what_a_job_s_script_starts_does_not_train_by_itself(tmp_path: Path) -> None:
    done = plain(tmp_path, "", "dmi.init()", DMI_JOB="train-1a2b")
    assert done.returncode == 1
    assert "trains nothing by itself" in done.stderr


def test_a_forked_child_writes_no_export(tmp_path: Path) -> None:
    body = """
from torch import nn
run = dmi.init()
model = run.model(nn.Linear(2, 1))
run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
if not os.fork():
    with torch.no_grad(): model.weight.zero_()
    sys.exit(0)
os.wait()
print("exported", os.path.exists(os.environ["DMI_EXPORT"]), flush=True)
"""
    done = plain(tmp_path, "", body, DMI_EXPORT=str(tmp_path / "model.safetensors"))
    assert "exported False" in done.stdout
    assert (tmp_path / "model.safetensors").exists()
