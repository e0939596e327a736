"""Builds a static web app of exported models, which a phone can install.

  build_web_app.py --model=signs.tflite,digits.tflite --output_dir=site/

Any static host serves the directory, over HTTPS, under any path. The page adapts the
models in the browser and works offline after the first visit.
"""

import pathlib

from absl import flags

from tff_perfedavg.experiments.deploy import web_app
from tff_perfedavg.experiments.settings import command

_PAGE = pathlib.Path(__file__).resolve().parent / "web_demo"


def define(flag_values):
    web_app.define(flag_values, _PAGE)
    flags.adopt_module_key_flags(web_app, flag_values)
    flags.DEFINE_string(
        "output_dir",
        None,
        "Directory to write; an app that was written there before is replaced.",
        required=True,
        flag_values=flag_values,
    )


def main(flag_values):
    app = web_app.build(flag_values, _PAGE)
    output_dir = pathlib.Path(flag_values.output_dir)
    web_app.write(app, output_dir)
    megabytes = sum(map(len, app.values())) / 1e6
    print(f"{output_dir} has the app: {len(app)} files, {megabytes:.1f} MB.")
    print("Upload it to any host that serves files over HTTPS.")


if __name__ == "__main__":
    command.run(main, define)
