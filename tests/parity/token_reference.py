"""The other side of the token parity: transformers' CLIPTokenizer on the same folders and texts.

    TORCH_ENVIRONMENT/bin/python tests/parity/token_reference.py WORK
"""

import json
import sys
from pathlib import Path

import numpy as np
from token_ours import texts
from transformers import CLIPTokenizer

work = Path(sys.argv[1])
results = {}
for name, folder in json.loads((work / "folders.json").read_text()).items():
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    results[name] = np.array(tokenizer(texts(), padding="max_length", truncation=True).input_ids, np.int32)
np.savez(work / "reference.npz", **results)
