"""``python -m vtlvlm``, for launchers such as torchrun and srun."""

import sys

from vtlvlm.cli import main

sys.exit(main())
