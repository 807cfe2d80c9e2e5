"""What holds for every test: fixed seeds, and no deadline, since machines under load are not wrong."""

from hypothesis import settings

settings.register_profile("grebe", deadline=None, derandomize=True)
settings.load_profile("grebe")
