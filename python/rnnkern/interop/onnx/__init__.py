# SPDX-License-Identifier: Apache-2.0
"""ONNX models in and out; the ``onnx`` package is imported when a file is read or written."""
