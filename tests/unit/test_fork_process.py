"""A process that forks after loading a model: the child gets an error, not a hang."""

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys, grebe
model = grebe.Model.load(n_threads=2)
session = model.session()
session.prefill([0, 5, 6])
pid = os.fork()
if pid == 0:
    try:
        session.decode(7)
    except grebe.GrebeError as error:
        sys.exit(7 if "forked" in str(error) else 8)
    sys.exit(9)
_, status = os.waitpid(pid, 0)
session.decode(7)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_forked_child_is_refused_and_exits() -> None:
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert out.stdout.strip() == "7", out.stderr
