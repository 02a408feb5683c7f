"""Our use of TensorRT's API against both libraries' real bindings: names, and that calls look the same in both."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bei.compiler.engines import tensorrt as builder
from bei.runtime.executors import tensorrt as executor
from tests.consumers import FOLDER, ask, needs_consumers
from tests.tensorrt.used import ONLY_RTX, USED, describe, subclasses

rtx = pytest.importorskip("tensorrt_rtx")
ROOT = Path(builder.__file__).parents[2]

LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
ENTRIES = """createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL getInferLibVersion
createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion
getPluginRegistry initLibNvInferPlugins"""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The full TensorRT's bindings described. NVIDIA's libraries are 4 GB and not on PyPI; the ten functions that the
    bindings want of them are made here, and none is called."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("libraries")
    (folder / "entries.c").write_text("".join(f"void *{n}(void) {{ return 0; }}\n" for n in ENTRIES.split()))
    for name in LIBRARIES:
        made = f"{name}.so.11"
        command = [compiler, "-shared", "-fPIC", "-o", made, f"-Wl,-soname,{made}", "entries.c"]
        subprocess.run(command, cwd=folder, check=True)
    return ask(Path(__file__).with_name("used.py"), libraries=folder)


@needs_consumers
def test_full_tensorrt_has_everything_we_use_of_it(full: Any) -> None:
    assert full["version"].startswith("11.")
    missing = {
        f"{kind}.{name}"
        for kind, names in USED.items()
        for name in names
        if name not in full["classes"].get(kind, {})
    }
    assert missing == set()


@needs_consumers
def test_what_is_marked_as_rtx_only_is(full: Any) -> None:
    there = {
        f"{kind}.{name}"
        for kind, names in ONLY_RTX.items()
        for name in names
        if name in full["classes"].get(kind, {})
    }
    assert there == set()


def test_rtx_has_everything_in_both_tables() -> None:
    classes = describe(rtx)["classes"]
    for table in (USED, ONLY_RTX):
        for kind, names in table.items():
            assert set(names) <= set(classes[kind]), kind


@needs_consumers
def test_a_call_that_is_right_for_one_library_is_right_for_the_other(full: Any) -> None:
    ours = describe(rtx)["classes"]
    compared = 0
    for kind, names in USED.items():
        for name in names:
            assert full["classes"][kind][name] == ours[kind][name], f"{kind}.{name}"
            compared += bool(ours[kind][name])
    assert compared > 20


@needs_consumers
def test_the_builders_callbacks_stand_on_both_libraries_base_classes(full: Any) -> None:
    expected = {"log": ["an error"], "written": 5, "goes_on": [True, False]}
    assert full["callbacks"] == expected
    assert subclasses(rtx) == expected


def test_the_tables_name_all_that_the_code_uses() -> None:
    files = [
        *(ROOT / "runtime" / "tensorrt").glob("*.py"),
        *(ROOT / "compiler" / "engines").glob("tensorrt*.py"),
    ]
    code = "".join(file.read_text() for file in [*files, Path(executor.__file__)])
    used = set(re.findall(r"\btrt\.([A-Z]\w+)", code))
    assert used - {*USED, *ONLY_RTX} == set()
    assert {"Builder", "Runtime", "ExecutionContextAllocationStrategy"} <= used


@needs_consumers
def test_the_bindings_are_those_of_the_list() -> None:
    assert any(FOLDER.glob("tensorrt_cu*_bindings-11.*.dist-info"))
