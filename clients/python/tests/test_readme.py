"""The README's examples run."""
import os
import pathlib
import re

import pytest
from conftest import MEMBERS

README = pathlib.Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example, server):
    names = {"MODEL": MEMBERS[0], "BINARY": os.environ["REWARM_BINARY"]}
    exec(compile(example.replace("127.0.0.1:50051", server.address), str(README), "exec"), names)
