"""Does not end loading."""

import time

time.sleep(600)
