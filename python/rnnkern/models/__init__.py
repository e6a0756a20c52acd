# SPDX-License-Identifier: Apache-2.0
"""Models made of several layers."""
