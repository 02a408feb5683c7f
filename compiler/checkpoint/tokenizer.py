"""The checkpoint's tokenizer as the bundle carries it: a tokenizer.json that alone gives the ids transformers gives.

Truncation and padding stored in the file are dropped (they are the runtime's business), what transformers takes from
tokenizer_config.json is written into it, and the ids of some hard texts are recorded to be checked at load.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers

from bei.adapters.base import HfConfig
from bei.adapters.config import EncoderConfig
from bei.adapters.remote_code import remote_classes
from bei.compiler.checkpoint import tokenizer_rules as rules
from bei.compiler.checkpoint.checkpoint import Checkpoint
from bei.compiler.checkpoint.files import read_optional
from bei.compiler.checkpoint.hard_texts import HARD_TEXTS
from bei.compiler.checkpoint.head import HeadFiles
from bei.errors import CheckpointError
from bei.manifest import Golden, TokenizerSpec

FILE = "tokenizer.json"

UNLIMITED = 10**9
"""A model_max_length above this is transformers' way of saying that there is none (it writes int(1e30))."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFiles:
    """``json`` is the bundle's tokenizer.json; ``max_length`` the tokens a text may have, special ones included."""

    json: str
    spec: TokenizerSpec
    max_length: int
    warnings: tuple[str, ...] = ()


def read_tokenizer(checkpoint: Checkpoint, head_files: HeadFiles, cfg: EncoderConfig) -> TokenizerFiles:
    """Read, complete and check the tokenizer; raises CheckpointError."""
    settings = _settings(checkpoint)
    path = checkpoint.folder / FILE
    if not path.exists():
        raise CheckpointError(_missing(checkpoint.repo))
    with _library_errors():
        tokenizer = _load(path)
        name = _class_of(tokenizer, checkpoint.config, settings)
        warnings = _complete(tokenizer, name, checkpoint.config, settings)
        if head_files.lowercase:
            _lowercase(tokenizer)
        golden = tuple(Golden(text=text, ids=tuple(tokenizer.encode(text).ids)) for text in HARD_TEXTS)
    _check_ids(tokenizer, cfg.vocab)
    spec = TokenizerSpec(
        file=FILE,
        pad_id=_pad_id(tokenizer, settings, checkpoint.config, cfg.vocab),
        vocab_size=cfg.vocab,
        golden=golden,
        unk_id=_unk_id(tokenizer, rules.special_tokens(name, settings)["unk_token"]),
    )
    max_length = _max_length(checkpoint, settings, head_files.max_length, cfg)
    return TokenizerFiles(json=tokenizer.to_str(), spec=spec, max_length=max_length, warnings=warnings)


def _settings(checkpoint: Checkpoint) -> rules.Settings:
    values = read_optional(checkpoint.folder, rules.CONFIG)
    if "added_tokens_decoder" not in values:
        values |= read_optional(checkpoint.folder, "special_tokens_map.json")
    return rules.Settings(values=values)


def _missing(repo: str) -> str:
    return (
        f"{repo}: no {FILE}. Create it once with transformers and copy it beside config.json:\n"
        '  python -c "from transformers import AutoTokenizer; '
        f"AutoTokenizer.from_pretrained('{repo}').save_pretrained('OUT')\""
    )


@contextmanager
def _library_errors() -> Iterator[None]:
    """The tokenizers library raises bare Exception, and for some damaged files a panic, which is a BaseException."""
    try:
        yield
    except (CheckpointError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise CheckpointError(
            f"{FILE}: cannot be used ({error}). Download it again, or save it with a newer transformers."
        ) from error


def _load(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _class_of(tokenizer: Tokenizer, hf: HfConfig, settings: rules.Settings) -> str:
    byte_level = '"ByteLevel"' in tokenizer.to_str()
    return rules.class_of(settings, hf.name, hf.get("tokenizer_class"), byte_level)


def _unk_id(tokenizer: Tokenizer, token: str | None) -> int | None:
    return None if token is None else tokenizer.token_to_id(token)


def _complete(tokenizer: Tokenizer, name: str, hf: HfConfig, settings: rules.Settings) -> tuple[str, ...]:
    """Apply what transformers' class ``name`` adds to the file; what is doubtful comes back as warnings."""
    rules.apply(tokenizer, name, settings)
    warnings = []
    if not rules.is_known(name):
        warnings.append(f"{rules.CONFIG}: tokenizer_class {name} is not known; {FILE} is used as it is.")
    if _appends_eos(hf, settings):
        _ensure_last(tokenizer, settings.token("eos_token", "<|endoftext|>"))
    elif settings.flag("add_eos_token", False) and not _ends_with(tokenizer, settings.token("eos_token")):
        warnings.append(
            f"{rules.CONFIG} has add_eos_token, but {FILE} adds none; as transformers 5 does, {FILE} is followed."
        )
    if settings.values.get("truncation_side", "right") != "right":
        warnings.append(f"{rules.CONFIG}: truncation_side is not 'right'; texts are cut on the right.")
    return tuple(warnings)


def _appends_eos(hf: HfConfig, settings: rules.Settings) -> bool:
    """Whether the checkpoint's own tokenizer class, which is never executed, is the one known to append EOS.

    gte-Qwen2's tokenization_qwen.py sets the post-processor in Python. Any other class of a checkpoint's own is
    refused.
    """
    stated = settings.values.get("auto_map")
    classes = _flat(stated.get("AutoTokenizer") if isinstance(stated, dict) else stated)
    foreign = [name for name in classes if name.split("--")[-1].split(".")[0] != "tokenization_qwen"]
    if foreign:
        raise CheckpointError(
            f"{rules.CONFIG}: auto_map asks for the checkpoint's own code ({', '.join(foreign)}), which is never "
            "executed. Use a revision with a standard tokenizer."
        )
    gte_qwen2 = hf.name == "qwen2" and any(
        found.name.startswith("modeling_qwen.") for found in remote_classes(hf)
    )
    return (bool(classes) or gte_qwen2) and settings.flag("add_eos_token", True)


def _flat(names: object) -> list[str]:
    listed = names if isinstance(names, list) else [names]
    return [name for name in listed if isinstance(name, str)]


def _ensure_last(tokenizer: Tokenizer, token: str | None) -> None:
    if token is not None and not _ends_with(tokenizer, token):
        rules.append_token(tokenizer, token)


def _ends_with(tokenizer: Tokenizer, token: str | None) -> bool:
    ids = tokenizer.encode("a").ids
    return token is not None and bool(ids) and ids[-1] == tokenizer.token_to_id(token)


def _lowercase(tokenizer: Tokenizer) -> None:
    """sentence-transformers' do_lower_case: a Lowercase normalizer in front, unless there is one."""
    before = tokenizer.normalizer
    parts: list[Any] = [before] if before else []
    if isinstance(before, normalizers.Sequence):
        parts = [before[i] for i in range(len(before))]
    if not any(isinstance(part, normalizers.Lowercase) for part in parts):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *parts])


def _check_ids(tokenizer: Tokenizer, rows: int) -> None:
    outside = [(number, token) for token, number in tokenizer.get_vocab(True).items() if number >= rows]
    if outside:
        number, token = min(outside)
        raise CheckpointError(
            f"{FILE}: {len(outside)} tokens have ids that the embedding table lacks (first: {token!r} = {number}, "
            f"the table has {rows} rows). The tokenizer belongs to another model."
        )


def _pad_id(tokenizer: Tokenizer, settings: rules.Settings, hf: HfConfig, rows: int) -> int:
    """Of the tokenizer's padding token, else config.json's; 0 where nobody says (padding is masked anyway)."""
    token = settings.token("pad_token")
    if token is not None and (number := tokenizer.token_to_id(token)) is not None:
        return int(number)
    stated = hf.get("pad_token_id")
    return stated if isinstance(stated, int) and not isinstance(stated, bool) and 0 <= stated < rows else 0


def _max_length(
    checkpoint: Checkpoint, settings: rules.Settings, stated: int | None, cfg: EncoderConfig
) -> int:
    """As sentence-transformers decides it, and never more than a table of learned positions serves.

    Its own limit if it states one, else the smaller of the tokenizer's model_max_length and the model's
    max_position_embeddings.
    """
    table = cfg.positions - (0 if cfg.position_pad is None else cfg.position_pad + 1)
    served = [table] if cfg.positions else []
    if cfg.positions and table < 1:
        raise CheckpointError(f"{checkpoint.name}: a table of {cfg.positions} positions serves no token.")
    if stated is not None:
        return min([stated, *served])
    hf = checkpoint.config
    declared = [
        settings.values.get("model_max_length"),
        hf.get("max_position_embeddings"),
        hf.get("n_positions"),
    ]
    limits = [*served, *(int(value) for value in declared if _is_length(value))]
    if not limits:
        raise CheckpointError(
            f"{checkpoint.name}: no file states a maximum length. Add model_max_length to {rules.CONFIG}."
        )
    return min(limits)


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < UNLIMITED
