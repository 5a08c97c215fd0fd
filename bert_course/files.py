"""Files that are written whole or not at all, and files from the Hugging Face Hub."""

import json
import os
import sys
import tempfile
from pathlib import Path


class replacing:
    """Write to a temporary file beside `path`, then rename: a full disk or a crash leaves the old file whole."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name + ".")
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                with open(self.temporary, "rb+") as file:
                    os.fsync(file.fileno())  # on the disk before it takes the old file's place
                os.chmod(self.temporary, 0o644)
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None


def download(repository: str, files: list[str], revision: str | None = None, kind: str = "model") -> Path:
    """The folder with some files of a repository on the Hub, downloaded once; says on stderr how much is to come.

    `huggingface_hub` tries again, six times in all, while the Hub is slow or busy. What has come is kept.

    Args:
        files: names, or patterns such as "*.json".
        kind: "model" or "dataset".
    Raises:
        OSError or a subclass: if they are not here and the Hub does not give them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    wanted = {"repo_type": kind, "revision": revision, "allow_patterns": files}
    try:
        plan = snapshot_download(repository, dry_run=True, **wanted)
    except DryRunError:  # the Hub cannot be reached
        return Path(snapshot_download(repository, local_files_only=True, **wanted))
    sizes = [file.file_size or 0 for file in plan if file.will_download]
    if sizes:
        print(f"Downloading {repository}: {len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB.", file=sys.stderr, flush=True)
    return Path(snapshot_download(repository, **wanted))
