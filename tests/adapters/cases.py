"""One row per architecture and spelling: the tiny models that prove the adapters. Switch on what a family can do."""

from tests.adapters.cases_decoders import DECODER_CASES
from tests.adapters.cases_encoders import ENCODER_CASES

CASES = (*ENCODER_CASES, *DECODER_CASES)
