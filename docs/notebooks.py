"""Shows the notebooks of this directory as pages of the site."""

import base64
import json
import pathlib

from mkdocs.structure.files import File


def on_files(files, config):
    """Adds a page, and its figures, for each notebook."""
    for path in sorted(pathlib.Path(config.docs_dir).glob("*.ipynb")):
        text, figures = page(json.loads(path.read_text()), path.stem)
        for name, content in figures.items():
            files.append(File.generated(config, name, content=content))
        files.append(File.generated(config, f"{path.stem}.md", content=text))
        # The notebook itself is nothing to show.
        files.remove(files.get_file_from_path(path.name))
    return files


def page(notebook, name):
    """Returns a notebook as Markdown, and its figures by name."""
    parts, figures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append("```text\n{}```".format("".join(output["text"])))
            elif "image/png" in output["data"]:
                figure = f"images/{name}_{len(figures)}.png"
                figures[figure] = base64.b64decode(output["data"]["image/png"])
                parts.append(f"![What the cell above draws]({figure})")
    return "\n\n".join(parts) + "\n", figures
