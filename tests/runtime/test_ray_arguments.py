"""The args of a Ray Serve application: what they become, and that every wrong one is a message of one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bei.errors import BeiError, InputError
from bei.runtime.cli import parser
from bei.runtime.ray_arguments import Arguments, read_arguments
from bei.runtime.serve import ServedAs

EXAMPLE = Path(__file__).parents[2] / "examples/ray_serve.yaml"


def test_a_folder_a_list_and_a_command_line() -> None:
    assert read_arguments({"bundles": "/a"}).served() == {"/a": ServedAs()}
    named = {"path": "/b", "name": "b", "prompts": {"query": "q: "}, "default_prompt": "query"}
    assert read_arguments({"bundles": ["/a", named]}).served() == {
        "/a": ServedAs(),
        "/b": ServedAs(name="b", prompts={"query": "q: "}, default_prompt="query"),
    }
    typed = read_arguments({"bundles": "/a", "strict_model_name": "true", "max_queue_tokens": "5"})
    assert (typed.strict_model_name, typed.max_queue_tokens) == (True, 5)


def test_defaults_are_those_of_bei_serve() -> None:
    options, told = read_arguments({"bundles": "/a"}).options({}), parser().parse_args(["/a"])
    assert options.max_queue_tokens == told.max_queue_tokens
    assert options.hang_seconds == told.hang_seconds
    assert options.settings.max_body_bytes == told.max_body_bytes
    assert options.settings.drain_seconds == told.drain_seconds
    assert options.settings.always_normalize == (told.normalize == "always")
    assert options.keys is None


def test_keys_are_those_where_the_replica_runs(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("in-file\n")
    environment = {"BEI_API_KEYS": "usual", "OURS": "one, two"}

    def accepted(**args: Any) -> list[str]:
        keys = read_arguments({"bundles": "/a", **args}).options(environment).keys
        assert keys is not None
        return [key for key in ("usual", "one", "two", "in-file") if keys.accept(key.encode())]

    assert accepted() == ["usual"]
    assert accepted(api_key_variable="OURS") == ["one", "two"]
    assert accepted(api_key_file=str(tmp_path / "keys")) == ["in-file"]
    for arguments, message in (
        ({"api_key_variable": "NONE"}, "NONE is not set where the replica runs"),
        ({"api_key_file": "/nowhere"}, "cannot be read"),
    ):
        with pytest.raises(BeiError, match=message):
            read_arguments({"bundles": "/a", **arguments}).options(environment)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "missing required field `bundles`"),
        ({"bundles": []}, "length >= 1"),
        ({"bundles": ""}, "length >= 1"),
        ({"bundles": 5}, "bundles"),
        ({"bundles": [{"name": "a"}]}, "missing required field `path`"),
        ({"bundles": [{"path": "/a", "nmae": "a"}]}, "unknown field `nmae`"),
        ({"bundles": [{"path": "/a", "prompts": {"query": 1}}]}, "Expected `str`"),
        ({"bundle": "/a"}, "unknown field `bundle`|missing required field `bundles`"),
        ({"bundles": "/a", "replicas": 2}, "unknown field `replicas`"),
        ({"bundles": "/a", "max_queue_tokens": 0}, "max_queue_tokens"),
        ({"bundles": "/a", "drain_seconds": -1}, "drain_seconds"),
        ({"bundles": "/a", "normalize": "never"}, "normalize"),
        ({"bundles": ["/a", {"path": "/a"}]}, "given twice"),
        ({"bundles": "/a", "api_key_file": "/k", "api_key_variable": "K"}, "got both, need one"),
    ],
)
def test_wrong_args_are_one_message(args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_arguments(args)
    assert "\n" not in str(raised.value)


def test_the_example_names_arguments_that_there_are() -> None:
    """Those that are commented out too."""
    text = EXAMPLE.read_text()
    (application,) = yaml.safe_load(text)["applications"]
    assert read_arguments(application["args"]).served() == {"/bundles/minilm.bundle": ServedAs(name="minilm")}
    _, inside = text.split("    args:\n")
    commented = [
        line for line in inside.split("    deployments:\n")[0].splitlines() if line.startswith("      # ")
    ]
    names = {line[8:].split(":")[0] for line in commented}
    assert len(names) >= 5
    assert names <= set(Arguments.__struct_fields__)
