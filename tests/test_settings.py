"settings.ini repeats pyproject.toml in nbdev's classic format: the two must not differ."

import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def mirror():
    parser = ConfigParser(interpolation=None)
    assert parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_the_nbdev_settings_are_equal(project, mirror):
    for key, value in project["tool"]["nbdev"].items():
        expected = value if isinstance(value, list) else [str(value)]
        found = mirror[key].split() if isinstance(value, list) else [mirror[key]]
        assert found == expected, key


def test_every_classic_key_is_there(mirror):
    keys = """repo lib_name lib_path version description keywords author author_email user copyright license status
        min_python audience language nbs_path doc_path git_url doc_host doc_baseurl branch title readme_nb tst_flags
        allowed_cell_metadata_keys allowed_metadata_keys recursive black_formatting clean_ids clear_all jupyter_hooks
        custom_sidebar put_version_in_init console_scripts requirements dev_requirements""".split()
    assert [key for key in keys if key not in mirror] == []


def test_the_project_is_the_same(project, mirror):
    facts = project["project"]
    assert mirror["lib_name"] == mirror["repo"] == facts["name"]
    assert mirror["description"] == facts["description"]
    assert mirror["keywords"].split() == facts["keywords"]
    assert mirror["author"] == facts["authors"][0]["name"]
    assert ">=" + mirror["min_python"] == facts["requires-python"]
    assert (mirror["license"], facts["license"]) == ("apache2", "Apache-2.0")
    assert mirror["console_scripts"].split() == [f"{name}={call}" for name, call in facts["scripts"].items()]
    assert mirror["git_url"] == facts["urls"]["Repository"].rstrip("/")
    assert mirror["git_url"].split("/")[-2:] == [mirror["user"], mirror["repo"]]
    assert mirror["doc_host"] + mirror["doc_baseurl"] == facts["urls"]["Documentation"].rstrip("/")


def test_the_requirements_are_the_same(project, mirror):
    facts = project["project"]
    assert mirror["requirements"].split() == facts["dependencies"]
    extras = {key.removesuffix("_requirements"): value.split() for key, value in mirror.items()
              if key.endswith("_requirements")}
    assert extras == facts["optional-dependencies"]
    assert {"dev", "docs"} <= set(extras)


def test_the_version_is_the_same_everywhere(mirror):
    import yaml
    from nbdev.config import get_config

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert mirror["version"] == str(get_config(ROOT).version) == str(citation["version"])


def test_torch_is_bounded(project):
    from packaging.requirements import Requirement

    requirements = {r.name: r for r in map(Requirement, project["project"]["dependencies"])}
    assert requirements["torch"].specifier.contains("2.13.0")
    unbounded = [name for name, r in requirements.items() if not any(s.operator in ("<", "==") for s in r.specifier)]
    assert unbounded == [], "give every dependency an upper bound: a fresh install must stay a tested one"
