"""The wheel: the client and the server in one, which `pip install` puts in place and `pip uninstall` takes away."""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

pytest.importorskip("hatchling")
PROJECT = ROOT / "clients/python"
VERSION = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(encoding="utf-8"), re.M)[1]

#: The README's first example of Python.
README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[0]


def run(*command, cwd="/", **variables):
    """What a command prints, in an environment that knows nothing of this repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("REWARM_", "PYTHON"))}
    environment.update({"PATH": "/usr/bin:/bin", **variables})
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env=environment)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


#: Of the repository's builds: they ask cargo what the program is made of.
CARGO = os.path.dirname(shutil.which("cargo") or "/usr/bin/cargo") + ":/usr/bin:/bin"


def build(folder, source=PROJECT, **variables):
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder),
        str(source), **variables)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Without a debug build's symbols, which a release has not either: packing them is most of the time."""
    stripped = tmp_path_factory.mktemp("program") / "rewarm"
    if shutil.which("strip") is None:
        shutil.copy(os.environ["REWARM_BINARY"], stripped)
    else:
        subprocess.run(["strip", "-o", str(stripped), os.environ["REWARM_BINARY"]], check=True)
    return stripped


@pytest.fixture(scope="module")
def wheel(program, tmp_path_factory):
    return build(tmp_path_factory.mktemp("wheel"), REWARM_BINARY=str(program), PATH=CARGO)


def test_installed_it_serves_and_uninstalled_it_leaves_nothing(wheel, tmp_path):
    home = tmp_path / "venv"
    run(sys.executable, "-m", "venv", str(home))
    python, pip = str(home / "bin/python"), [str(home / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    before = files(home)
    # what it depends on is that of the tests
    shared = pathlib.Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()) / "tests.pth"
    shared.write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")), encoding="utf-8")
    run(*pip, "install", "--no-index", str(wheel))
    assert (home / "bin/rewarm").stat().st_mode & 0o777 == 0o755
    assert run(str(home / "bin/rewarm"), "--version") == f"rewarm {VERSION}\n"
    assert run(python, "-m", "rewarm", "--version") == f"rewarm {VERSION}\n"
    assert run(python, "-c", "import rewarm; print(rewarm.__file__)").startswith(str(home))
    # the program is found though it is not on the PATH; the example is the README's, as a reader of the clone types it
    printed = run(python, "-c", README, cwd=ROOT).splitlines()
    (better, first), (worse, second) = [line.split(maxsplit=1) for line in printed]
    assert (first, second) == ("I won the lottery.", "I broke my leg.") and float(better) > float(worse)
    run(*pip, "uninstall", "--yes", "rewarm")
    shared.unlink()
    assert files(home) == before


def files(folder):
    """All but what Python itself compiles of pip and keeps."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_the_tag_is_what_the_program_needs(wheel):
    auditwheel = pytest.importorskip("auditwheel.wheel_abi")
    from auditwheel.architecture import Architecture

    tag = wheel.stem.removeprefix(f"rewarm-{VERSION}-py3-none-")
    assert tag != "any"
    architecture = Architecture(tag.split("_", 3)[3])
    found = auditwheel.analyze_wheel_abi(None, architecture, wheel, frozenset(), disable_isa_ext_check=True,
                                         allow_graft=False)
    assert str(found.sym_policy.name) == str(found.overall_policy.name) == tag


def test_a_source_distribution_makes_the_same_wheel(wheel, program, tmp_path):
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path / "source"), cwd=PROJECT,
        PATH=CARGO)
    [source] = (tmp_path / "source").iterdir()
    # without the repository, and without cargo
    again = build(tmp_path / "wheel", source, REWARM_BINARY=str(program))
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert again.name == wheel.name
        assert {file.filename: file.CRC for file in other.infolist()} == {file.filename: file.CRC for file in one.infolist()}


def test_what_the_program_is_made_of_comes_with_its_licences(wheel):
    with zipfile.ZipFile(wheel) as packed:
        notices = packed.read(f"rewarm-{VERSION}.dist-info/licenses/THIRD-PARTY.txt").decode()
    listed, *texts = notices.split("\n\n" + "-" * 80 + "\n")
    crates = re.findall(r"^([\w-]+) ([\w.+-]+): (.+)$", listed, re.M)
    locked = re.findall(r'^name = "(.*)"\nversion = "(.*)"\nsource', (ROOT / "Cargo.lock").read_text(encoding="utf-8"), re.M)
    assert {(name, version) for name, version, _ in crates} <= set(locked)
    assert {"tonic", "tokio", "candle-core", "tokenizers"} <= {name for name, _, _ in crates}
    # not what only tests are made of
    assert not {"proptest", "rcgen"} & {name for name, _, _ in crates}
    [mine] = [text for text in texts if re.search(r"^(.*, )?tokio [\d.]+(, |$)", text.splitlines()[0]) and "MIT" in text]
    assert "Copyright (c) Tokio Contributors" in mine
    assert sum("TERMS AND CONDITIONS FOR USE" in text for text in texts) > 0


def test_licences_and_versions(wheel):
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        for licence in ["LICENSE-MIT", "LICENSE-APACHE"]:
            [name] = [name for name in names if name.endswith(f"licenses/{licence}")]
            assert packed.read(name) == (ROOT / licence).read_bytes()
    assert re.search(r'^version = "(.*)"$', (PROJECT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1] == VERSION


@pytest.mark.parametrize(("binary", "why"), [
    (None, "cargo build --release"),
    ("target/release/rewarm", "absolute path"),
    (sys.executable + "-that-is-not", "absolute path"),
    (str(PROJECT / "generate"), "not a 64-bit program of Linux"),
])
def test_without_a_program_it_says_what_it_needs(binary, why, tmp_path):
    with pytest.raises(AssertionError, match=why):
        build(tmp_path, **({} if binary is None else {"REWARM_BINARY": binary}))


def test_the_client_alone_is_for_every_platform(tmp_path):
    assert build(tmp_path, REWARM_BINARY="none").name == f"rewarm-{VERSION}-py3-none-any.whl"
