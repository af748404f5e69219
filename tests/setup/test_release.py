"""The release: one version everywhere, archives with every file, a wheel that works, containers that fit set-up."""

from __future__ import annotations

import importlib.util
import json
import re
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
METADATA = "Metadata-Version: 2.4\nName: vla-rl\nVersion: 1.2.0\nLicense-Expression: Apache-2.0\n"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def release() -> ModuleType:
    return script("release_check")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with a Python file, a file that is none, and what Python leaves behind."""
    folder = tmp_path / "src" / "vla_rl"
    for name in ("__init__.py", "page/style.css", "__pycache__/__init__.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


def write_wheel(path: Path, without: str = "", metadata: str = METADATA) -> Path:
    info = "vla_rl-1.2.0.dist-info"
    files = {
        "vla_rl/__init__.py": "",
        "vla_rl/page/style.css": "",
        f"{info}/METADATA": metadata,
        f"{info}/entry_points.txt": "[console_scripts]\nvla-rl = vla_rl.cli:main\n",
        f"{info}/licenses/LICENSE": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            if not without or not name.endswith(without):
                archive.writestr(name, text)
    return path


def test_every_file_names_the_same_version(release: ModuleType):
    assert release.require_one_version(ROOT) == release.project(ROOT)["version"]


def test_a_version_that_was_forgotten_is_found(release: ModuleType, tmp_path: Path):
    for name in ("pyproject.toml", "src/vla_rl/__init__.py", "CITATION.cff", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    citation = tmp_path / "CITATION.cff"
    citation.write_text(re.sub(r"(?m)^version: .*", "version: 0.0.1", citation.read_text()))
    with pytest.raises(release.ReleaseError, match=r"CITATION\.cff says 0\.0\.1"):
        release.require_one_version(tmp_path)


def test_a_whole_wheel_passes(release: ModuleType, package: Path, tmp_path: Path):
    release.check_wheel(write_wheel(tmp_path / "a.whl"), package, "1.2.0")


@pytest.mark.parametrize("name", ["style.css", "LICENSE", "entry_points.txt"])
def test_a_file_that_the_wheel_lacks_is_named(
    release: ModuleType, package: Path, tmp_path: Path, name: str
):
    wheel = write_wheel(tmp_path / "a.whl", without=name)
    with pytest.raises(release.ReleaseError, match=name):
        release.check_wheel(wheel, package, "1.2.0")


def test_a_wheel_of_another_version_is_refused(release: ModuleType, package: Path, tmp_path: Path):
    wheel = write_wheel(tmp_path / "a.whl", metadata=METADATA.replace("1.2.0", "1.1.0"))
    with pytest.raises(release.ReleaseError, match=r"1\.1\.0"):
        release.check_wheel(wheel, package, "1.2.0")


def test_an_unknown_extra_is_answered_with_those_there_are(
    release: ModuleType, capsys: pytest.CaptureFixture[str]
):
    assert release.main(["--extra", "metawrld"]) == 1
    said = capsys.readouterr().err
    assert "metawrld" in said
    assert "metaworld" in said


@pytest.mark.slow
def test_the_wheel_is_built_holds_every_file_and_works(
    release: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("build", reason="needs build: make setup-dev")
    pytest.importorskip("hatchling", reason="needs hatchling: make setup-dev")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    version = release.require_one_version(ROOT)
    wheel, sdist = release.build(tmp_path / "dist")
    release.check_wheel(wheel, release.PACKAGE, version)
    release.check_sdist(sdist, release.PACKAGE)
    program = release.install_beside(wheel, tmp_path / "venv")
    release.try_out(program, tmp_path / "empty", version)


# --- containers and continuous integration: not run here, but held to what set-up does


def dockerfile() -> str:
    """The Dockerfile without comments, one instruction a line."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return "\n".join(x for x in lines if not x.startswith("#")).replace("\\\n", " ")


def argument(name: str) -> str:
    found = re.search(rf"^ARG {name}=(.+)$", dockerfile(), flags=re.MULTILINE)
    assert found is not None
    return found[1]


def stages() -> dict[str, str]:
    parts = re.split(r"^FROM (\S+) AS (\w+)$", dockerfile(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[1::3], parts[2::3], strict=True))


def test_the_image_takes_what_set_up_takes(release: ModuleType):
    install = script("install")
    assert argument("TORCH_VERSION") == install.TORCH_VERSION
    words = set(stages()["base"].split())
    assert set(install.EGL_PACKAGES) | set(install.OSMESA_PACKAGES) <= words
    extras = set(argument("EXTRAS").split(","))
    assert extras <= set(release.project(ROOT)["optional-dependencies"])


def test_the_image_is_pinned_and_runs_as_a_user():
    bases = re.findall(r"^FROM (\S+)", dockerfile(), flags=re.MULTILINE)
    others = [base for base in bases if base not in stages()]
    assert others
    assert all(re.search(r":[\d.]+-[\w-]+@sha256:[0-9a-f]{64}$", base) for base in others)
    for stage in ("run", "dev"):
        users = re.findall(r"^USER (\w+)$", stages()[stage], flags=re.MULTILINE)
        assert users[-1:] == ["vla"], f"{stage} runs as {users or 'root'}"


def test_what_the_image_copies_exists_and_is_not_ignored():
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile(), flags=re.MULTILINE)
    paths = {path for line in copied for path in line.split()}
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    assert paths == {line[1:] for line in ignore if line.startswith("!")}
    assert all((ROOT / path).exists() for path in paths)


def test_the_development_container_names_a_stage_of_the_dockerfile():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["build"]["target"] in stages()
    folder = ROOT / ".devcontainer"
    assert (folder / container["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (
        f"useradd --uid 1000 --create-home --shell /bin/bash {container['remoteUser']}"
        in (stages()["base"])
    )


def test_continuous_integration_runs_the_pythons_that_set_up_takes():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which huggingface-hub brings")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    pythons = jobs["test"]["strategy"]["matrix"]["python"]
    fits = re.search(
        r"not \((\d), (\d+)\) <= .* <= \((\d), (\d+)\)", (ROOT / "scripts/setup.sh").read_text()
    )
    assert fits is not None
    assert pythons == [f"3.{minor}" for minor in range(int(fits[2]), int(fits[4]) + 1)]
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    called = {
        step["run"].split()[1] for job in jobs.values() for step in job["steps"] if "run" in step
    }
    assert called == {"test", "release-check"}
    assert called <= verbs


def test_the_citation_names_the_software_and_the_paper():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which huggingface-hub brings")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["type"] == "software"
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2505.18719"
    assert [author["family-names"] for author in paper["authors"]] == [
        "Lu", "Guo", "Zhang", "Zhou", "Jiang", "Gao", "Tang", "Wang",
    ]  # fmt: skip
