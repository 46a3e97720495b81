"""Tools from outside, which a machine may lack: then a test is skipped and says so, unless REWARM_REQUIRE_OPS is set."""

import os
import shutil
import subprocess

import pytest


def tool(name: str, package: str) -> str:
    """The path of `name`, which comes with `package`."""
    # Debian keeps nginx where the path of a user does not look.
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
    if path is None:
        (pytest.fail if os.environ.get("REWARM_REQUIRE_OPS") else pytest.skip)(f"{name} is not installed ({package})")
    return path


def run(*command: str, **options) -> str:
    """What the command says, of one that succeeds."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


# The program under test.
REWARM = os.environ["REWARM"]
