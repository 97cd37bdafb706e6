"""The main job: python run_clm.py --config training_args/base.json [--option value ...]

The same as `gpt2-hf train`, without an installed command.
"""

import sys

from gpt2_hf.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
