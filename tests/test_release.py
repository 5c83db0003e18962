"""What is released: the files in wheel and sdist, and a wheel that works where nothing else of ours is."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZipFile

import pytest

from blocks import ROOT, claim
from tagi import __version__

pytestmark = pytest.mark.slow  # builds, and installs torch into an environment of its own
(INSTALL,) = claim("docs/index.md", "console")
WHEEL = (
    "tagi/*.py",
    "tagi/py.typed",
    "tagi/eval/tasks/*",
    "tagi/serve/page/style.css",
    "tagi/assets/*/README.md",
    "tagi/assets/*/model.safetensors",
    "tagi/assets/*/*.json",
    "tagi/assets/*/run.yaml",
    "tagi/assets/*/chat_template.jinja",
    "tagi/assets/everyday/test/*.json",
    f"tagi-{__version__}.dist-info/*",
)
"""Each is there, and nothing else: no tests, no training data, no runs, no caches."""


def did(*command: object, folder: Path, **variables: str) -> str:
    """What a program says that must not fail, and that finds no package by a variable of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    words = [str(one) for one in command]
    done = subprocess.run(words, cwd=folder, env=kept | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last commit, without what lies about in a working tree."""
    folder = tmp_path_factory.mktemp("release") / "export"
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        pytest.skip("not a clone of the repository: nothing says which files are released")
    folder.mkdir()
    subprocess.run(["tar", "--extract"], cwd=folder, input=packed.stdout, check=True)
    return folder


@pytest.fixture(scope="module")
def built(export: Path) -> tuple[Path, Path]:
    """The wheel, made of the sdist, and the sdist."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", "dist"], cwd=export, check=True, capture_output=True)
    (wheel,), (sdist,) = (list((export / "dist").glob(kind)) for kind in ("*.whl", "*.tar.gz"))
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds what the page says to install, and nothing before it but torch."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    constraints = {"PIP_CONSTRAINT": str(export / "constraints.txt"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    first, second = INSTALL.script.splitlines()
    assert first == "pip install ."
    for line in ("pip install torch", second, f"pip install {built[0]}"):
        did(folder / "bin/python", "-m", *line.split(), folder=folder, **constraints)
    return folder / "bin"


def test_the_wheel_holds_what_the_package_needs_and_no_more(built: tuple[Path, Path]) -> None:
    with ZipFile(built[0]) as wheel:
        names = wheel.namelist()
    assert [name for name in names if not any(fnmatch(name, one) for one in WHEEL)] == []
    assert [one for one in WHEEL if not any(fnmatch(name, one) for name in names)] == []
    assert sum("/everyday/test/" in name for name in names) == len(list((ROOT / "datasets/everyday/test").iterdir()))
    assert built[0].stat().st_size < 60e6


def test_the_sdist_is_the_repository(built: tuple[Path, Path], export: Path) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {one.name.partition("/")[2] for one in sdist.getmembers()}
    ours = {str(one.relative_to(export)) for one in export.rglob("*") if one.is_file()}
    assert names - {"PKG-INFO"} == {one for one in ours if not one.startswith(("dist/", ".ci/"))}


def test_what_the_wheel_says_of_itself(built: tuple[Path, Path]) -> None:
    with ZipFile(built[0]) as wheel:
        of = f"tagi-{__version__}.dist-info/"
        metadata = email.message_from_bytes(wheel.read(of + "METADATA"))
        points = wheel.read(of + "entry_points.txt").decode()
        assert wheel.read(of + "licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == (
        "tagi",
        __version__,
        "Apache-2.0",
    )
    assert "Typing :: Typed" in metadata.get_all("Classifier", []) and metadata.get_all("Project-URL")
    assert "[console_scripts]\ntagi = tagi.cli.main:run" in points
    assert "[vllm.general_plugins]\ntagi = tagi.serve.vllm:register" in points
    for file in built:
        did(sys.executable, "-m", "twine", "check", "--strict", file, folder=ROOT)


def test_the_image_is_made_of_the_same_package(built: tuple[Path, Path], export: Path, tmp_path: Path) -> None:
    """What Dockerfile copies is enough to build it."""
    dockerfile = (export / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (.* /tmp/tagi\S*)$", dockerfile, re.MULTILINE):
        *sources, target = line.split()
        place = tmp_path / "tagi" / target.removeprefix("/tmp/tagi").strip("/")
        place.mkdir(parents=True, exist_ok=True)
        for source in sources:
            from_ = export / source
            shutil.copytree(from_, place, dirs_exist_ok=True) if from_.is_dir() else shutil.copy(from_, place)
    build = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "tagi/")
    did(*build, folder=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with ZipFile(wheel) as ours, ZipFile(built[0]) as released:
        assert sorted(ours.namelist()) == sorted(released.namelist())


def test_the_wheel_works_alone(installed: Path, tmp_path: Path) -> None:
    """In an empty folder: the demo, an instruction, the scores of the bundled tasks, both checkpoints."""
    (tmp_path / "empty").mkdir()

    def tagi(*arguments: str) -> str:
        return did(installed / "tagi", *arguments, folder=tmp_path / "empty", XDG_CACHE_HOME=str(tmp_path / "cache"))

    where = "import tagi; print(tagi.__file__)"
    assert did(installed / "python", "-c", where, folder=tmp_path).startswith(str(installed.parent))
    shown = tagi("demo")
    assert "mismatched instruction" in shown and "adapter" in shown
    for checkpoint in ("default", "lora-alone"):
        asked = ("run", "Name the city in the text.", "--input", "We met in Oslo last May.")
        assert tagi(*asked, "--checkpoint", checkpoint).strip() == "Oslo"
    assert '"n": 8' in tagi("eval", "everyday", "--task", "t_log_bird", "--instances", "2", "--json")
    assert "lora_only" in tagi("methods")
    assert list((tmp_path / "empty").iterdir()) == []


def test_both_entry_points_lead_somewhere(installed: Path, tmp_path: Path) -> None:
    script = "from importlib.metadata import entry_points as e\nfor g in ('console_scripts', 'vllm.general_plugins'):\n"
    script += " (one,) = e(group=g, name='tagi'); print(one.load().__module__)\n"
    said = did(installed / "python", "-c", script, folder=tmp_path)
    assert said.split() == ["tagi.cli.main", "tagi.serve.vllm"]
