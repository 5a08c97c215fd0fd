"""A stand-in for the Hugging Face Hub on this machine, with the API and the file layout that a download needs."""

import http.server
import json
import os
import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hub(repositories: dict[tuple[str, str, str], Path], busy: int = 0):
    """Serve folders as repositories.

    Args:
        repositories: folder by ("models" or "datasets", name, revision).
        busy: so many requests for files are answered by 503, "busy", or (the second) not at all, before the first is served.
    Yields:
        the address, and the list of the files asked for, which grows.
    """
    asked, refused = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            for (kind, name, revision), folder in repositories.items():
                names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
                oids = {file: f"{i:040x}" for i, file in enumerate(names)}
                if path == f"/api/{kind}/{name}/revision/{revision}":
                    return self.answer(json.dumps({"id": name, "sha": revision, "siblings": [{"rfilename": n} for n in names]}))
                tree = f"/api/{kind}/{name}/tree/{revision}"
                if path == tree or path.startswith(f"{tree}/"):
                    inside = folder / path.removeprefix(tree).removeprefix("/")
                    found = inside.rglob("*") if "recursive=true" in self.path.lower() else inside.glob("*")
                    entries = [{"type": "file" if f.is_file() else "directory", "path": f.relative_to(folder).as_posix(),
                                "size": f.stat().st_size} for f in sorted(found)]
                    return self.answer(json.dumps([entry | {"oid": oids.get(entry["path"], "0" * 40)} for entry in entries]))
                file = path.removeprefix(f"/{'' if kind == 'models' else kind + '/'}{name}/resolve/{revision}/")
                if file in names:
                    if len(refused) < busy:
                        refused.append(file)
                        if len(refused) == 2:
                            return time.sleep(PATIENCE + 2)
                        return self.send_error(503)
                    asked.append(file)
                    return self.answer((folder / file).read_bytes(), {"ETag": f'"{oids[file]}"', "X-Repo-Commit": revision})
            return self.send_error(404)

        do_HEAD = do_GET

        def answer(self, body, headers=()):
            body, headers = body if isinstance(body, bytes) else body.encode(), dict(headers)
            if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):  # a stream is read in parts
                first, last = int(part[1]), min(int(part[2]), len(body) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                body = body[first : last + 1]
            self.send_response(206 if part else 200)
            for key, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


DOWN = "http://127.0.0.1:9"  # nothing listens there
PATIENCE = 4  # seconds that a client waits for an answer


def environment(endpoint: str, home: Path) -> dict[str, str]:
    """For a process of its own: the address of the Hub is read when huggingface_hub is imported."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    return kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                   "HF_HUB_DOWNLOAD_TIMEOUT": str(PATIENCE), "HF_HUB_ETAG_TIMEOUT": str(PATIENCE)}
