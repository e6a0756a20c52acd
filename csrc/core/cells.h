// The list of cells: a new one is a header of its own and one more entry here.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cells/simplified_gru.h"

namespace rnnkern {

template <class... Cells>
struct CellList {
  static constexpr int size = sizeof...(Cells);
};

using AllCells = CellList<Rnn<Tanh>, Rnn<Relu>, SimplifiedGru, GruResetBefore, GruResetAfter, Lstm>;

}  // namespace rnnkern
