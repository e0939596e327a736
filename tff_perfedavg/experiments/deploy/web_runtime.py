"""LiteRT's web runtime from its npm package: installed, checked and read."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess

from tff_perfedavg import errors

# From a file of the app to that of a package. Of the four builds of the runtime those
# without threads, which need no headers that a static host could not send; a browser
# loads one of the two.
_CORE, _UTILS = "@litertjs/core", "@litertjs/wasm-utils"
FILES = {
    "core.js": (_CORE, "dist/index.js"),
    "wasm-utils.js": (_UTILS, "dist/index.js"),
    **{
        f"wasm/litert_wasm_{build}.{kind}": (
            _CORE,
            f"wasm/litert_wasm_{build}.{kind}",
        )
        for build in ("internal", "compat_internal")
        for kind in ("js", "wasm")
    },
}
# What an import statement calls them.
IMPORTS = {_CORE: "core.js", _UTILS: "wasm-utils.js"}


def read(modules: pathlib.Path, page: pathlib.Path) -> dict[str, bytes]:
    """Returns the runtime's files by their names in the app.

    Installs the packages first where they are missing from the page's own directory.

    Args:
      modules: where npm packages are installed.
      page: the directory of the page, with `package.json`.

    Raises:
      ConfigError: if the packages are not there, in another version, or cannot be
        installed.
    """
    if not modules.exists() and modules == page / "node_modules":
        _install(page)
    _check(modules, page)
    try:
        return {
            name: (modules / package / path).read_bytes()
            for name, (package, path) in FILES.items()
        }
    except OSError as e:
        raise errors.ConfigError(
            f"{e.filename} cannot be read ({e.strerror}). Remove {modules}, so that it "
            "is installed anew."
        ) from e


def _install(page: pathlib.Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise errors.ConfigError(
            "The page needs the npm package @litertjs/core, and npm is not installed. "
            "Install Node.js with npm, or give node_modules, a directory that has "
            "the package.",
            remedies=["node_modules"],
        )
    print("Installing LiteRT's web runtime with npm ci ...", flush=True)
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=page,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise errors.ConfigError(
            f"npm ci failed in {page}:\n{done.stderr.strip()}\nThe first run needs a "
            "package registry; later ones need none."
        )


def _check(modules: pathlib.Path, page: pathlib.Path) -> None:
    wanted = json.loads((page / "package.json").read_text())["dependencies"]
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
