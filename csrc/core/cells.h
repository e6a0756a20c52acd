// SPDX-License-Identifier: Apache-2.0
// The list of cells: a new one is a header of its own and one more entry here.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cells/simplified_gru.h"

namespace rnnkern {

// Cells are templates on the lane, so that no two instruction sets share a symbol.
template <template <class V> class... Cells>
struct CellList {
  static constexpr int size = sizeof...(Cells);
};

using AllCells = CellList<RnnTanh, RnnRelu, SimplifiedGru, GruResetBefore, GruResetAfter, Lstm>;

}  // namespace rnnkern
