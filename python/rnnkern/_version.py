# SPDX-License-Identifier: Apache-2.0
"""The version, said here alone: pyproject.toml reads it too."""

__version__ = "0.1.0"
