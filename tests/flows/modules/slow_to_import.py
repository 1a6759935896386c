"""A module whose import takes as long as the environment says."""

import os
import time

time.sleep(float(os.environ.get("TEST_IMPORT_SECONDS", "0.5")))
