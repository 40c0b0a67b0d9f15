"""The version's only home: pyproject.toml, setup.py, `_C` and the package read it from here."""

__version__ = "0.1.0"
