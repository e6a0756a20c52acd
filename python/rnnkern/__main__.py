# SPDX-License-Identifier: Apache-2.0
"""``python -m rnnkern`` is the command line."""

import sys

from rnnkern.cli import main

sys.exit(main())
