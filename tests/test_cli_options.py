"""Every flag is a promise: a new one is a visible decision, made here."""

import argparse
from collections.abc import Callable

import pytest

from bei.compiler.cli import parser as compile_parser
from bei.compiler.doctor.cli import parser as doctor_parser
from bei.compiler.export.cli import parser as export_parser
from bei.compiler.parity.cli import parser as parity_parser
from bei.runtime.capacity.cli import parser as plan_parser
from bei.runtime.cli import parser as serve_parser
from bei.runtime.corpus.cli import parser as embed_parser
from bei.runtime.inspect_cli import parser as inspect_parser

FLAGS = {
    "bei-compile": (
        compile_parser,
        """--cache --calibration --card --config --hardware-compatibility --help --json --layout --max-batch
        --max-batch-tokens --max-length --no-parity --offline --only --out --plan --policy --precision --ray --repo
        --revision --target --targets --timing-cache --token-embeddings --version-compatible --weights --workers --zoo""",
    ),
    "bei-embed": (
        embed_parser,
        """--actor-gpus --actors --allow-unverified --column --dimensions --dtype --format --help --id-column --json --out --prompt-name --ray
        --shard-rows --target --threads""",
    ),
    "bei-doctor": (doctor_parser, "--help --json"),
    "bei-export": (export_parser, "--allow-unverified --format --help --out --target"),
    "bei-inspect": (inspect_parser, "--help --json --no-verify --steps --verify"),
    "bei-parity": (
        parity_parser,
        "--checkpoint --full --help --html --json --only --ray --runner --target --texts --weights --workers --zoo",
    ),
    "bei-plan": (
        plan_parser,
        """--allow-unverified --curves --device --help --host-cores --json --length-distribution --max-batch-tokens --measure --p99 --price
        --prices --rate --seed --spare --target --texts-per-request --threads""",
    ),
    "bei-serve": (
        serve_parser,
        """--access-log --allow-unverified --api-key-file --cors-origin --devices --drain-seconds --hang-seconds --help --host
        --max-batch-tokens --max-body-bytes --max-connections --max-queue-tokens --normalize --otlp-endpoint --port --prompts
        --replicas --served-model-name --strict-model-name --target --threads --tls-cert --tls-key""",
    ),
}


@pytest.mark.parametrize("program", FLAGS)
def test_flags(program: str) -> None:
    parser: Callable[[], argparse.ArgumentParser]
    parser, promised = FLAGS[program]
    found = {
        option for action in parser()._actions for option in action.option_strings if option.startswith("--")
    }
    assert found == set(promised.split())
