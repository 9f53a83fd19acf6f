"""The supervisor and what it starts, when the system or one of them fails."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

from appliance.daemon import Child, Supervisor
from tests.integration.test_custody_dimse import no_descriptors
from tests.tracing import environment


def test_a_process_whose_supervisor_died_before_it_could_ask_ends_at_once() -> None:
    """It would sweep away what the next supervisor's receive is just writing."""
    ours, theirs = socket.socketpair()
    ours.close()
    code = "import sys; from appliance.life import Life; Life(int(sys.argv[1])); print('went on')"
    with theirs:
        done = subprocess.run(
            [sys.executable, "-c", code, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment(),
            capture_output=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")


def test_a_process_that_cannot_be_started_takes_no_other_down(tmp_path: Path) -> None:
    lines: list[tuple[str, Any]] = []
    supervisor = Supervisor(
        config_path=tmp_path, log=lambda event, **detail: lines.append((event, detail["status"])), notify=lambda _: None
    )
    child = Child("receive")
    with no_descriptors():
        supervisor._start(child)
    assert lines == [("ended", "Too many open files")]
    assert (child.process, child.line, child.failures) == (None, None, 1)
    assert child.start_at > child.started


def started_by(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_an_appliance_under_rehearsal_ends_with_the_program_that_rehearses_it(tmp_path: Path) -> None:
    """Killed, it can clean nothing up: an appliance that nobody knows of would run on."""
    code = """
        import sys, threading
        from pathlib import Path
        from appliance.rehearsal.box import Box
        box = Box(Path(sys.argv[1]) / "box", {"engines_dir": sys.argv[1], "receive": {"port": 0}}, threading.Event())
        box.start()
        print(box._process.pid, flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    with subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        supervisor = int(program.stdout.readline())
        processes = [os.pidfd_open(pid) for pid in (supervisor, *started_by(supervisor))]
        program.kill()
    assert len(processes) >= 4
    for process in processes:
        assert select.select([process], [], [], 10)[0]
        os.close(process)


def test_one_that_never_comes_up_does_not_keep_the_appliance_from_being_ready(tmp_path: Path) -> None:
    """Or systemd would end receive, too, whenever its start-up time is over."""
    config = tmp_path / "scanside.yaml"
    settings = {"state": str(tmp_path / "var"), "engines_dir": str(tmp_path), "receive": {"port": 0}}
    config.write_text(yaml.safe_dump(settings))
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from appliance.daemon import Child, Supervisor

            def notify(word):
                print(word, flush=True)
                supervisor.stopping |= word == "READY=1"

            children = [Child("receive"), Child("hopeless")]
            options = {"log": lambda *_, **__: None, "notify": notify, "children": children}
            supervisor = Supervisor(config_path=Path(sys.argv[1]), **options)
            sys.exit(supervisor.run())
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script), str(config)], env=environment(), capture_output=True, timeout=30, check=False
    )
    assert b"READY=1" in done.stdout.splitlines()
    assert done.returncode == 0


def test_a_log_that_nobody_reads_any_more_stops_nothing() -> None:
    code = "from appliance.logs import configure; configure('x').info('a'); configure('x').info('b'); print('alive')"
    reading, writing = socket.socketpair()
    reading.close()
    with writing:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=writing.fileno(),
            check=False,
        )
    assert done.stdout == b"alive\n"


def test_log_lines_are_whole() -> None:
    code = "from appliance.logs import configure; configure('x').info('event', port=1)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), stderr=subprocess.PIPE, check=True)
    assert {"event": "event", "port": 1, "process": "x"}.items() <= json.loads(done.stderr).items()
