"""Hugging Face's libraries without progress bars, warnings and network."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging import ERROR, getLogger
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Within: errors only, no progress bars, no Hub (as HF_HUB_OFFLINE=1); afterwards everything as it was."""
    from huggingface_hub import constants
    from transformers import utils

    logging: Any = utils.logging
    verbosity, offline = logging.get_verbosity(), constants.HF_HUB_OFFLINE
    bars = logging.is_progress_bar_enabled()
    sentence_transformers = getLogger("sentence_transformers")
    level = sentence_transformers.level
    with ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        undo.callback(logging.set_verbosity, verbosity)
        logging.disable_progress_bar()
        if bars:
            undo.callback(logging.enable_progress_bar)
        sentence_transformers.setLevel(ERROR)
        undo.callback(sentence_transformers.setLevel, level)
        constants.HF_HUB_OFFLINE = True
        undo.callback(setattr, constants, "HF_HUB_OFFLINE", offline)
        yield
