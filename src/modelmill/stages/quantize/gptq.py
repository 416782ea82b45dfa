"""GPTQ with GPTQModel's own API.

Never through transformers' `GPTQConfig`: that writes another format than asked for, no
`quantize_config.json`, and the calibration text into `config.json`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch

# At least two: on a machine with two cores the engine would make one and then ask it for two.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, ((os.cpu_count() or 1) + 1) // 2)))

from gptqmodel import GPTQModel, QuantizeConfig  # noqa: E402 - reads the variable above
from gptqmodel.looper import loop_processor  # noqa: E402
from pydantic import JsonValue, TypeAdapter  # noqa: E402

from modelmill.models.families import close_known_holes, expected_linears  # noqa: E402
from modelmill.models.gptq import check_gptq_files  # noqa: E402
