# SPDX-License-Identifier: Apache-2.0
"""What the tests share; a test imports from here and from no other test."""
