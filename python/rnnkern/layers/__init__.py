# SPDX-License-Identifier: Apache-2.0
"""Layers and what is around them, and what is made from them: tapes, snapshots, streams."""
