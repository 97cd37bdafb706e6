"""The notebook runs, and is committed with the outputs of a real run.

To make its outputs again, with its own two minutes (`pip install` is left out, as in the test):

    python -m tests.docs.test_notebook
"""

import ast
import copy
import re
import tempfile

import nbformat
import pytest
from nbclient import NotebookClient

from ..conftest import REPOSITORY

PATH = REPOSITORY / "examples" / "first_model.ipynb"
TINY = """
TEXT = "\\n\\n".join(f"Paragraph {i} tells of the number {i}, and of no other." for i in range(60))
MINUTES = 1.0  # the steps end earlier
EPOCHS = 2
SIZE = {"d_model": 32, "num_layers": 1, "num_heads": 1, "max_length": 32}
"""


def tags(cell):
    """The tags of a cell, as the notebook shows them."""
    return cell.metadata.get("tags", [])


def training_cell(notebook):
    """The source of the cell that trains."""
    (source,) = (cell.source for cell in notebook.cells if "GPT2HFTrainingArguments(" in cell.source)
    return source


def execute(notebook, folder, replace=""):
    """Run all cells in `folder` but the installation, with other parameters, and put the outputs into the notebook."""
    sources = [cell.source for cell in notebook.cells]
    for cell in notebook.cells:
        if "install" in tags(cell):
            cell.source = ""
        elif "parameters" in tags(cell):
            cell.source += replace
    NotebookClient(notebook, timeout=600, coalesce_streams=True, resources={"metadata": {"path": folder}}).execute()
    for cell, source in zip(notebook.cells, sources, strict=True):
        cell.source = source


def clean(notebook):
    """Leave out what belongs to a machine: warnings of its libraries, and times of execution."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        cell.metadata.pop("execution", None)
        cell.execution_count = None if "install" in tags(cell) else number
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}


@pytest.fixture(scope="module")
def notebook():
    """The notebook as it is committed."""
    return nbformat.read(PATH, as_version=4)


def test_it_runs_to_its_end_on_a_text_that_is_pasted(notebook, tmp_path):
    """With a tiny model: it trains, draws, colours and writes. Run again, the cell that trains finds that run."""
    executed = copy.deepcopy(notebook)
    executed.cells.append(nbformat.v4.new_code_cell(training_cell(notebook)))
    execute(executed, str(tmp_path), TINY)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if output.output_type == "display_data"]
    assert any("image/png" in data for data in shown)
    assert any(data.get("text/html", "").count(' bits"') > 10 for data in shown)
    assert (tmp_path / "runs" / "first_model" / "best_model" / "model.safetensors").is_file()
    assert "Paragraph 7 " in (tmp_path / "my_text.txt").read_text()
    (again,) = executed.cells[-1].outputs
    assert "holds a finished run" in again.text


def test_what_ends_the_run_is_a_parameter(notebook):
    """Whoever wants to train longer need not look into the cell that trains."""
    code = {tag: cell.source for cell in notebook.cells if cell.cell_type == "code" for tag in tags(cell)}
    parameters = {name.id for node in ast.parse(code["parameters"]).body for name in node.targets}
    limits = {
        keyword.arg: {node.id for node in ast.walk(keyword.value) if isinstance(node, ast.Name)}
        for keyword in ast.walk(ast.parse(training_cell(notebook)))
        if isinstance(keyword, ast.keyword) and keyword.arg in ("max_training_hours", "num_train_epochs", "max_steps")
    }
    assert limits == {"max_training_hours": {"MINUTES"}, "num_train_epochs": {"EPOCHS"}}
    assert {"MINUTES", "EPOCHS"} <= parameters


def test_the_outputs_are_those_of_a_real_run(notebook):
    """Every cell but the installation was run, in order; nothing of the machine is in its outputs."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code if "install" not in tags(cell)] == list(range(2, len(code) + 1))
    text = "".join(str(output) for cell in code for output in cell.outputs)
    assert "image/png" in text and "--- a sample of the model ---" in text and "bits a token on average" in text
    assert "error" not in [output.output_type for cell in code for output in cell.outputs]
    paths = re.findall(r"(?<![\w/<.])/(?:home|root|tmp|usr|work|opt|Users|mnt)/\S*", text)
    assert not paths, paths


def main():
    """Make the outputs again."""
    made = nbformat.read(PATH, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        execute(made, folder)
    clean(made)
    nbformat.write(made, PATH)


if __name__ == "__main__":
    main()
