"""docs/nbd.md works as it says; its section on Ceph is tried by tests/ceph."""

import re
import shutil
from pathlib import Path

import pytest
from doc_commands import list_blocks, run_blocks

from nbd_servers import find_port, needs_nbdkit, needs_qemu_nbd

PAGE = (Path(__file__).parents[2] / "docs/nbd.md").read_text()


@needs_nbdkit
@needs_qemu_nbd
@pytest.mark.skipif(shutil.which("certtool") is None, reason="needs certtool (apt-get install gnutls-bin)")
def test_every_command_and_program_of_the_page_works(tmp_path_factory: pytest.TempPathFactory) -> None:
    text = re.sub(r"^## Ceph RBD\n.*?(?=^## )", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    for port in set(re.findall(r"\b1089[0-9]\b", text)):
        text = text.replace(port, str(find_port()))
    blocks = list_blocks(text)
    assert len(blocks) > 10
    run_blocks(blocks, tmp_path_factory.mktemp("d"))
