"""Serves the web page that runs an exported digits or MNIST file in the browser.

  serve_web_demo.py --model=digits.tflite

Prints the page's address. It is answered to this machine alone, and the page asks
nothing of any other: LiteRT's web runtime comes from the npm package, which the first
run installs with `npm ci`.
"""

import base64
import functools
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import urllib.parse
from http import server

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.experiments.settings import command
from tff_perfedavg.ondevice import seal

_PAGE = pathlib.Path(__file__).resolve().parent / "web_demo"


def define(flag_values):
    flags.DEFINE_string(
        "model",
        None,
        "A .tflite file that export_tflite wrote.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "port",
        8000,
        "Port of the page; 0 picks a free one.",
        lower_bound=0,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "node_modules",
        str(_PAGE / "node_modules"),
        "Where npm packages are installed.",
        flag_values=flag_values,
    )


class _Handler(server.SimpleHTTPRequestHandler):
    """Answers with the page, the model and the npm packages, and nothing else."""

    extensions_map = {  # noqa: RUF012 - as the base class has it
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".map": "application/json",
        ".wasm": "application/wasm",
        "": "application/octet-stream",
    }

    def __init__(self, *args, model, modules, policy, **kwargs):
        self._model = model.resolve()
        self._modules = modules
        self._policy = policy
        super().__init__(*args, directory=str(_PAGE), **kwargs)

    def translate_path(self, path):
        path = urllib.parse.urlsplit(path).path
        if path == "/model.tflite":
            return str(self._model)
        inside = path.removeprefix("/node_modules/")
        root = _PAGE if inside == path else self._modules
        self.directory = str(root.resolve())
        return super().translate_path(inside)

    def send_head(self):
        port = self.server.server_port
        hosts = [f"{name}:{port}" for name in ("127.0.0.1", "localhost")]
        if port == 80:
            hosts += ["127.0.0.1", "localhost"]
        # Who is asked for another host answers a page whose name was led here.
        if self.headers.get_all("Host") not in [[host] for host in hosts]:
            self.send_error(421, f"This is {hosts[0]}")
            return None
        try:
            path = pathlib.Path(self.translate_path(self.path)).resolve()
        except (OSError, RuntimeError, ValueError):  # No file has such a name.
            self.send_error(400)
            return None
        if path != self._model and not path.is_relative_to(self.directory):
            self.send_error(404)
            return None
        return super().send_head()

    def list_directory(self, path):
        self.send_error(404)

    def end_headers(self):
        self.send_header("Content-Security-Policy", self._policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        # The next run may serve another model, or another version, from here.
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_request(self, code="-", size="-"):
        """Errors are logged; what went well is no news."""


def main(flag_values):
    model = pathlib.Path(flag_values.model)
    modules = pathlib.Path(flag_values.node_modules)
    _check_model(model)
    if not modules.exists() and modules == _PAGE / "node_modules":
        _install()
    _check_runtime(modules)
    handler = functools.partial(
        _Handler, model=model, modules=modules, policy=_policy()
    )
    try:
        page = server.ThreadingHTTPServer(("127.0.0.1", flag_values.port), handler)
    except (OSError, OverflowError) as e:
        raise errors.ConfigError(
            f"--port={flag_values.port} cannot be used ({e}); take another, or 0 for "
            "any that is free."
        ) from e
    with page:
        print(f"{model} is at http://127.0.0.1:{page.server_port}/", flush=True)
        try:
            page.serve_forever()
        except KeyboardInterrupt:
            print()


def _check_model(path: pathlib.Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as e:
        raise errors.ModelError(f"No model can be read at {path} ({e}).") from e
    seal.check(content, path)
    if content[4:8] != b"TFL3":
        raise errors.ModelError(
            f"{path} is no TensorFlow Lite file; write one with export_tflite."
        )


def _install() -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise errors.ConfigError(
            "The page needs the npm package @litertjs/core, and npm is not installed. "
            "Install Node.js with npm, or give --node_modules, a directory that has "
            "the package."
        )
    print("Installing LiteRT's web runtime with npm ci ...", flush=True)
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=_PAGE,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise errors.ConfigError(
            f"npm ci failed in {_PAGE}:\n{done.stderr.strip()}\nThe first run needs a "
            "package registry; later ones need none."
        )


def _check_runtime(modules: pathlib.Path) -> None:
    wanted = json.loads((_PAGE / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        try:
            found = json.loads((modules / name / "package.json").read_text())["version"]
        except OSError as e:
            raise errors.ConfigError(
                f"{modules} has no {name} ({e}); remove the directory, so that it is "
                "installed anew."
            ) from e
        if found != version:
            raise errors.ConfigError(
                f"{modules} has {name} {found}; the page needs {version}. Remove the "
                "directory, so that it is installed anew."
            )


def _policy() -> str:
    """What the page may load: from this server, and the import map it has inline."""
    page = (_PAGE / "index.html").read_text()
    (imports,) = re.findall(r'<script type="importmap">(.*?)</script>', page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(imports.encode()).digest()).decode()
    return (
        "default-src 'none'; "
        f"script-src 'self' 'wasm-unsafe-eval' 'sha256-{digest}'; "
        "style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


if __name__ == "__main__":
    command.run(main, define)
