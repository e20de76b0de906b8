"""Run by `make ceph` alone, which starts a Ceph first."""

import os

collect_ignore = [] if "UMAPPY_CEPH" in os.environ else ["test_rbd.py"]
