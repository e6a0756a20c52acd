# SPDX-License-Identifier: Apache-2.0
"""What training needs beside the layers: a loss, bounds on gradients, optimizers."""
