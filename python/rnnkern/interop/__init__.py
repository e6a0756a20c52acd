# SPDX-License-Identifier: Apache-2.0
"""Weights from other frameworks and to them; none is imported unless a call needs it."""
