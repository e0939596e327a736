"""A progressive web app of exported models: static files that any host can serve.

    index.html             the page of the first model
    digits.html            that of the second, if there are two
    manifest.webmanifest, icons/, service-worker.js
    page-<hash>/           scripts, styles and models
    litert-<hash>/         LiteRT's web runtime
    site.json              what was written, so that it can be replaced

The two directories are named by the hash of their content: what a browser keeps of
them never is of another version. All addresses are relative.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import pathlib
import shutil
import string
import tempfile
from collections.abc import Mapping, Sequence

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.data.verified_directory import written_whole
from tff_perfedavg.experiments.deploy import web_models, web_runtime
from tff_perfedavg.files import sync_directory

INDEX, LISTING = "index.html", "site.json"
_TABS = {web_models.SIGNS: "Teach it your signs", web_models.DIGITS: "Read digits"}
_SCRIPTS = ("*.js", "*.css")
_WORKER, _MANIFEST = "service-worker.js", "manifest.webmanifest"
_FORMAT = "tff_perfedavg web app"
_HASH_DIGITS = 16


def define(flag_values: flags.FlagValues, page: pathlib.Path) -> None:
    """Defines the flags of the app's models and npm packages.

    Args:
      flag_values: where the flags are defined.
      page: the directory of the page's sources.
    """
    flags.DEFINE_list(
        "model",
        None,
        "A .tflite file that export_tflite wrote, or two separated by a comma: one of "
        "users with labels of their own, one of digits.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "node_modules",
        str(page / "node_modules"),
        "Where npm packages are installed.",
        flag_values=flag_values,
    )


def build(flag_values: flags.FlagValues, page: pathlib.Path) -> dict[str, bytes]:
    """Builds the files of the app from the flags, by their paths.

    Args:
      flag_values: the flags of `define`.
      page: the directory of the page's sources.

    Raises:
      ModelError: if there is no page for a model.
      ConfigError: if the runtime is missing.
    """
    models = web_models.read([pathlib.Path(path) for path in flag_values.model])
    runtime = web_runtime.read(pathlib.Path(flag_values.node_modules), page)
    return files(models, runtime, page)


def files(
    models: Sequence[web_models.WebModel],
    runtime: Mapping[str, bytes],
    page: pathlib.Path,
) -> dict[str, bytes]:
    """Returns the files of an app, by their paths.

    Args:
      models: as `web_models.read` returns them.
      runtime: as `web_runtime.read` returns it.
      page: the directory of the page's sources.
    """
    own = {
        path.name: path.read_bytes()
        for pattern in _SCRIPTS
        for path in page.glob(pattern)
        if path.name != _WORKER
    }
    own |= {f"{model.kind}.tflite": model.content for model in models}
    page_at, runtime_at = _directory("page", own), _directory("litert", runtime)
    found = {f"{page_at}/{name}": content for name, content in own.items()}
    found |= {f"{runtime_at}/{name}": content for name, content in runtime.items()}
    for path in (page / "icons").glob("*.png"):
        found[f"icons/{path.name}"] = path.read_bytes()
    imports = json.dumps(
        {
            "imports": {
                name: f"./{runtime_at}/{path}"
                for name, path in web_runtime.IMPORTS.items()
            }
        }
    )
    places = {"page": page_at, "imports": imports, "policy": policy(imports)}
    for number, model in enumerate(models):
        source = string.Template((page / f"{model.kind}.html").read_text())
        places["tabs"] = _tabs([m.kind for m in models], number)
        found[_address(number, model.kind)] = source.substitute(places).encode()
    found[_MANIFEST] = _manifest(page, models[0].kind)
    found[_WORKER] = _worker(page, found)
    return found


def policy(imports: str) -> str:
    """Returns the page's Content-Security-Policy: its own host, and its import map.

    Args:
      imports: the import map, which alone stands in the page itself.
    """
    digest = base64.b64encode(hashlib.sha256(imports.encode()).digest()).decode()
    return (
        "default-src 'none'; "
        f"script-src 'self' 'wasm-unsafe-eval' 'sha256-{digest}'; "
        "style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "manifest-src 'self'; worker-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )


def write(app: Mapping[str, bytes], output_dir: pathlib.Path) -> None:
    """Writes an app's files to a directory, whole or not at all.

    Args:
      app: as `files` returns them.
      output_dir: where they are written; an app that was written there before is
        replaced.

    Raises:
      DataError: if something else is there, or the disk does not take it.
    """
    listing = {"format": _FORMAT, "files": sorted(app)}
    app = {**app, LISTING: json.dumps(listing, indent=2).encode()}
    before = _set_aside(output_dir)
    try:
        with written_whole(output_dir) as directory:
            for name, content in app.items():
                path = directory / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                sync_directory(path)
    except BaseException:
        if before is not None:
            (before / output_dir.name).rename(output_dir)
        raise
    finally:
        if before is not None:
            shutil.rmtree(before)


def _set_aside(output_dir: pathlib.Path) -> pathlib.Path | None:
    """Moves an app that was written before into a hidden directory beside it.

    Raises:
      DataError: if what is there is not an app alone.
    """
    if not output_dir.exists():
        return None
    found = {
        path.relative_to(output_dir).as_posix()
        for path in output_dir.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }
    try:
        listing = json.loads((output_dir / LISTING).read_text())
        is_ours = listing["format"] == _FORMAT
        foreign = found - {*listing["files"], LISTING} if is_ours else found
    except (OSError, ValueError, LookupError, TypeError):
        is_ours, foreign = False, found
    if output_dir.is_file() or foreign or (not is_ours and found):
        what = min(foreign, default="it")
        raise errors.DataError(
            f"{output_dir} has something in it that is no web app written before "
            f"({what}); remove it or choose another place."
        )
    before = pathlib.Path(
        tempfile.mkdtemp(".before", f".{output_dir.name}.", output_dir.parent)
    )
    output_dir.rename(before / output_dir.name)
    return before


def _directory(name: str, content: Mapping[str, bytes]) -> str:
    """Returns a directory's name: what is in it, and the hash of its content."""
    return f"{name}-{_hash(content)}"


def _hash(content: Mapping[str, bytes]) -> str:
    found = hashlib.sha256()
    for name in sorted(content):
        found.update(f"{name}\0{len(content[name])}\0".encode())
        found.update(content[name])
    return found.hexdigest()[:_HASH_DIGITS]


def _address(number: int, kind: str) -> str:
    return INDEX if number == 0 else f"{kind}.html"


def _tabs(kinds: Sequence[str], current: int) -> str:
    """Returns the links between the pages; '' where there is one."""
    if len(kinds) == 1:
        return ""
    links = [
        f'<a href="./{_address(number, kind) if number else ""}"'
        f"{' aria-current=' + chr(34) + 'page' + chr(34) if number == current else ''}"
        f">{html.escape(_TABS[kind])}</a>"
        for number, kind in enumerate(kinds)
    ]
    return f'<nav class="tabs" aria-label="Pages">{"".join(links)}</nav>'


def _manifest(page: pathlib.Path, kind: str) -> bytes:
    """Returns the app's manifest, named after its first page."""
    manifest = json.loads((page / _MANIFEST).read_text())
    manifest |= {"name": _TABS[kind]}
    return json.dumps(manifest, indent=2).encode()


def _worker(page: pathlib.Path, app: Mapping[str, bytes]) -> bytes:
    """Returns the service worker, which knows the app's files and its version."""
    # A browser loads one of the runtime's builds, and keeps what it loaded.
    optional = [name for name in app if "/wasm/" in name]
    facts = {
        "VERSION": _hash(app),
        "FILES": sorted(set(app) - set(optional)),
        "OPTIONAL": sorted(optional),
    }
    head = "".join(
        f"const {key} = {json.dumps(value)};\n" for key, value in facts.items()
    )
    return head.encode() + (page / _WORKER).read_bytes()
