"""The script serves the page until it is stopped."""

import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals of Unix")
def test_the_page_is_served_until_ctrl_c(checkout, tmp_path):
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, str(checkout / "scripts/playground.py"), "--no-open", "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    address = re.search(r"http://localhost:\d+/", process.stdout.readline())[0]
    with urllib.request.urlopen(address) as response:  # noqa: S310
        assert b"<title>Flip a motor" in response.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out + err).strip() == "interrupted"


def test_a_port_that_is_taken_is_said_so(load_script, capsys):
    script = load_script("playground")
    with script.make_server(0) as server:
        with pytest.raises(SystemExit) as exit_info:
            script.main(["--no-open", "--port", str(server.server_port)])
        assert exit_info.value.code == 2
    assert re.search(r"error: port must be free to listen on; got \d+: .* Use 0 for any\.\n", capsys.readouterr().err)
