"""What holds for every test: fixed seeds, no deadline, since machines under load are not wrong, and Ctrl-C."""

import signal

from hypothesis import settings

settings.register_profile("grebe", deadline=None, derandomize=True)
settings.load_profile("grebe")

# A shell starts background jobs with SIGINT ignored, and Python and its children keep that.
signal.signal(signal.SIGINT, signal.default_int_handler)
