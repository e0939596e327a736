"""Serves the web app of exported models to this machine.

  serve_web_demo.py --model=signs.tflite,digits.tflite

Prints the page's address. It is answered to this machine alone, with the files that
build_web_app writes, and the page asks nothing of any other: LiteRT's web runtime comes
from the npm package, which the first run installs with `npm ci`.
"""

import functools
import pathlib
import re
import urllib.parse
from http import server

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.experiments.deploy import web_app
from tff_perfedavg.experiments.settings import command

_PAGE = pathlib.Path(__file__).resolve().parent / "web_demo"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}


def define(flag_values):
    web_app.define(flag_values, _PAGE)
    flags.adopt_module_key_flags(web_app, flag_values)
    flags.DEFINE_integer(
        "port",
        8000,
        "Port of the page; 0 picks a free one.",
        lower_bound=0,
        flag_values=flag_values,
    )


class _Handler(server.BaseHTTPRequestHandler):
    """Answers with the app's files, which are in memory, and nothing else."""

    def __init__(self, *args, app, policy, **kwargs):
        self._app = app
        self._policy = policy
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self._answer(has_body=True)

    def do_HEAD(self):
        self._answer(has_body=False)

    def _answer(self, has_body):
        port = self.server.server_port
        hosts = [f"{name}:{port}" for name in ("127.0.0.1", "localhost")]
        if port == 80:
            hosts += ["127.0.0.1", "localhost"]
        # Who is asked for another host answers a page whose name was led here.
        if self.headers.get_all("Host") not in [[host] for host in hosts]:
            self.send_error(421, f"This is {hosts[0]}")
            return
        try:
            path = urllib.parse.unquote(
                urllib.parse.urlsplit(self.path).path, errors="strict"
            )
        except ValueError:
            path = "\0"
        if "\0" in path:  # No file has such a name.
            self.send_error(400)
            return
        name = path.removeprefix("/") or web_app.INDEX
        content = self._app.get(name)
        if content is None:
            self.send_error(404)
            return
        kind = _TYPES.get(pathlib.PurePath(name).suffix, "application/octet-stream")
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if has_body:
            self.wfile.write(content)

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
    app = web_app.build(flag_values, _PAGE)
    handler = functools.partial(_Handler, app=app, policy=_policy(app))
    try:
        page = server.ThreadingHTTPServer(("127.0.0.1", flag_values.port), handler)
    except (OSError, OverflowError) as e:
        raise errors.ConfigError(
            f"--port={flag_values.port} cannot be used ({e}); take another, or 0 for "
            "any that is free."
        ) from e
    with page:
        models = " and ".join(flag_values.model)
        address = f"http://127.0.0.1:{page.server_port}/"
        print(
            f"{models} {'are' if ' and ' in models else 'is'} at {address}", flush=True
        )
        try:
            page.serve_forever()
        except KeyboardInterrupt:
            print()


def _policy(app):
    """The pages' own policy, and what only a header can say."""
    page = app[web_app.INDEX].decode()
    (policy,) = re.findall(r'Content-Security-Policy"\s+content="(.*?)"', page)
    return f"{policy}; frame-ancestors 'none'"


if __name__ == "__main__":
    command.run(main, define)
