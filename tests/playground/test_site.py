"""The page is whole: what it names is there, and the bundles are those of its list."""

import hashlib
import json
import re
import urllib.error
import urllib.request
from threading import Thread

import pytest

from ssm_metarl_gym.playground.server import SITE, make_server

LISTED = json.loads((SITE / "bundles.json").read_text())
# What a page names: in HTML, in an import of JavaScript, and of what is loaded later.
NAMED = re.compile(r"""(?:href|src)="([^"#]+)"|from "([^"]+)"|fetchFile\("([^"]+)"\)""")


@pytest.fixture(scope="module")
def address():
    server = make_server(0)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_the_page_names_is_in_its_folder_and_all_of_that_is_named():
    named = {"index.html", *(entry["file"] for entry in LISTED.values())}
    for path in SITE.iterdir():
        if path.suffix in (".html", ".mjs"):
            found = {next(filter(None, groups)) for groups in NAMED.findall(path.read_text(encoding="utf-8"))}
            named |= {name.removeprefix("./") for name in found if name != "data:,"}
    assert named == {path.name for path in SITE.iterdir()}


def test_nothing_is_loaded_from_elsewhere():
    for path in SITE.iterdir():
        if path.suffix in (".css", ".html", ".mjs"):
            assert "//" not in re.sub(r"^\s*//.*$| // .*$", "", path.read_text(encoding="utf-8"), flags=re.M), path.name


def test_every_family_of_the_page_has_a_bundle():
    names = re.findall(r'name: "(\w+)",\n    title', (SITE / "families.mjs").read_text(encoding="utf-8"))
    assert names == list(LISTED)


@pytest.mark.parametrize("name", LISTED)
def test_a_bundle_is_the_listed_one_and_whole(name):
    raw = (SITE / LISTED[name]["file"]).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == LISTED[name]["sha256"]
    assert len(raw) < 64 * 1024
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata["format"] == "ssm-metarl-gym bundle 1"
    assert hashlib.sha256(metadata["bundle"].encode()).hexdigest() == metadata["sha256"]
    described = json.loads(metadata["bundle"])
    assert described["tensors"].keys() == header.keys()
    for tensor, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        assert hashlib.sha256(raw[begin:end]).hexdigest() == described["tensors"][tensor]["sha256"]
    assert (described["model"]["adapts"], described["adapter"]["kind"]) == ("last_layer", "Adapter")


@pytest.mark.parametrize("name", LISTED)
def test_what_the_bundles_were_measured_to_do(name):
    returns = LISTED[name]["returns"]
    least = {"cartpole": 195.0, "pendulum": -180.0, "point": 94.0}[name]
    assert returns["nominal, as it is"] > least
    assert returns["nominal, corrected"] > least
    assert returns["flip, corrected"] > least
    assert returns["flip, as it is"] < least - 50.0


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html; charset=utf-8"), ("/main.mjs", "text/javascript"), ("/style.css", "text/css")],
)
def test_files_are_served_as_what_they_are(address, path, kind):
    with urllib.request.urlopen(address + path) as response:  # noqa: S310
        assert response.headers["Content-Type"] == kind
        assert response.headers["Cache-Control"] == "no-store"
        assert response.read() == (SITE / (path[1:] or "index.html")).read_bytes()


def test_nothing_outside_of_the_folder_is_served(address):
    for path in ("/../server.py", "/%2e%2e/server.py", "/nothing.html"):
        with pytest.raises(urllib.error.HTTPError) as error_info:
            urllib.request.urlopen(address + path)  # noqa: S310
        error_info.value.close()
        assert error_info.value.code == 404


def test_a_port_that_is_taken_is_refused(address):
    port = int(address.rpartition(":")[2])
    with pytest.raises(ValueError, match=rf"port must be free to listen on; got {port}: .*Use 0 for any"):
        make_server(port)
