// SPDX-License-Identifier: Apache-2.0
// A layer in one direction, forward and backward, as XLA's runtime calls it: rnnkern.jax registers these.
#include <algorithm>
#include <exception>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

#include "bind/modules.h"
#include "bind/xla_call.h"
#include "core/cells.h"
#include "core/schedule.h"
#include "cpu/engine.h"

namespace rnnkern {
namespace {

namespace py = pybind11;

template <class T>
constexpr xla::DataType kDataType = std::is_same_v<T, std::int32_t> ? xla::DataType::s32
                                    : std::is_same_v<T, float>      ? xla::DataType::f32
                                                                    : xla::DataType::f64;

// Arrays in the order in which they are asked for; each must have the type and shape that is expected.
class Arrays {
 public:
  Arrays(const xla::Buffers& buffers, const char* what) : buffers_(buffers), what_(what) {}

  const xla::Buffer& next() {
    if (taken_ >= buffers_.count)
      throw std::invalid_argument(std::string("too few ") + what_ + ", got " +
                                  std::to_string(buffers_.count));
    return *buffers_.buffers[taken_++];
  }

  template <class T>
  T* take(std::initializer_list<Index> shape) {
    const auto& buffer = next();
    if (buffer.dtype != kDataType<std::remove_const_t<T>> ||
        !std::equal(shape.begin(), shape.end(), buffer.dims, buffer.dims + buffer.rank))
      throw std::invalid_argument("number " + std::to_string(taken_ - 1) + " of the " + what_ +
                                  " has another shape or type than the others ask for");
    return static_cast<T*>(buffer.data);
  }

  bool more() const { return taken_ < buffers_.count; }

 private:
  const xla::Buffers& buffers_;
  const char* what_;
  std::int64_t taken_ = 0;
};

Index attribute(const xla::Call& call, std::string_view name) {
  const auto& all = call.attributes;
  for (std::int64_t i = 0; i < all.count; ++i) {
    if (std::string_view(all.names[i]->data, all.names[i]->size) != name) continue;
    if (all.types[i] == xla::kIsScalar && all.values[i]->dtype == xla::DataType::s64)
      return *static_cast<const std::int64_t*>(all.values[i]->value);
  }
  throw std::invalid_argument("attribute " + std::string(name) + " must be a 64-bit integer");
}

// What both calls begin with.
template <class T>
struct Common {
  int cell;
  const CellFacts& facts;
  Compute compute;
  bool reverse;
  Index steps, batch, inputs, units, rows;
  const T* x;
  std::optional<ScheduleStorage> storage;
  Parameters<T> parameters;
  const T *h_0, *c_0;

  Common(const xla::Call& call, Arrays& arguments, Index own_cell)
      : cell(static_cast<int>(own_cell)),
        facts(cell_facts(cell)),
        compute(attribute(call, "bfloat16") != 0 ? Compute::bfloat16 : Compute::exact),
        reverse(attribute(call, "reverse") != 0) {
    const auto& first = arguments.next();
    if (first.rank != 3 || first.dtype != kDataType<T>)
      throw std::invalid_argument("x must have shape (T, B, I)");
    steps = first.dims[0], batch = first.dims[1], inputs = first.dims[2];
    x = static_cast<const T*>(first.data);
    units = attribute(call, "units");
    if (std::min({steps, batch, inputs, units}) < 1)
      throw std::invalid_argument("x must have at least one step, row and input");
    rows = facts.gates * units;
    const auto* lengths = arguments.take<const std::int32_t>({batch});
    std::vector<Index> kept(lengths, lengths + batch);
    const bool ragged = std::any_of(kept.begin(), kept.end(), [&](Index n) { return n != steps; });
    storage.emplace(steps, batch, ragged ? std::optional(std::move(kept)) : std::nullopt);
    const bool has_bias_hn = facts.recurrent_bias_gate >= 0;
    const T* const w_ih = arguments.take<const T>({rows, inputs});
    const T* const w_hh =
        facts.recurrent_product ? arguments.take<const T>({rows, units}) : nullptr;
    const T* const bias = arguments.take<const T>({rows});
    const T* const bias_hn = has_bias_hn ? arguments.take<const T>({units}) : nullptr;
    const T* const unit_weights =
        facts.unit_weights > 0 ? arguments.take<const T>({facts.unit_weights, units}) : nullptr;
    parameters = {inputs, units, units, w_ih, w_hh, bias, bias_hn, unit_weights, nullptr};
    h_0 = arguments.take<const T>({batch, units});
    c_0 = facts.cell_state ? arguments.take<const T>({batch, units}) : nullptr;
  }

  Schedule schedule() const { return storage->schedule(reverse); }
  Sequence<const T> sequence(const T* data, Index width) const {
    return {data, batch * width, width};
  }
  Sequence<T> sequence(T* data, Index width) const { return {data, batch * width, width}; }
};

// x, lengths, weight_ih, weight_hh, bias, [bias_hn,] [unit_weights,] h_0[, c_0] -> y, h_n[, c_n][, kept ...].
template <class T>
void forward_call(const xla::Call& call, Index cell) {
  Arrays arguments(call.arguments, "arguments"), results(call.results, "results");
  const Common<T> common(call, arguments, cell);
  const auto [steps, batch, units] = std::tuple(common.steps, common.batch, common.units);
  T* const y = results.take<T>({steps, batch, units});
  T* const h = results.take<T>({batch, units});
  T* const c = common.c_0 ? results.take<T>({batch, units}) : nullptr;
  T *saved = nullptr, *cells = nullptr;
  if (results.more()) {
    if (common.facts.saved > 0) saved = results.take<T>({steps * batch, common.facts.saved, units});
    if (c) cells = results.take<T>({steps * batch, units});
  }
  std::copy_n(common.h_0, batch * units, h);
  if (c) std::copy_n(common.c_0, batch * units, c);
  clear_dead(*common.storage, common.sequence(y, units), units);
  forward<T>(common.cell,
             {.schedule = common.schedule(),
              .parameters = common.parameters,
              .x = common.sequence(common.x, common.inputs),
              .tokens = {},
              .h = h,
              .c = c,
              .y = common.sequence(y, units),
              .saved = saved,
              .cells = cells},
             common.compute);
}

// What forward_call got, y, [kept ...,] dy, dh_n[, dc_n] -> dx, dweight_ih, dweight_hh, dbias,
// [dbias_hn,] [dunit_weights,] dh_0[, dc_0].
template <class T>
void backward_call(const xla::Call& call, Index cell) {
  Arrays arguments(call.arguments, "arguments"), results(call.results, "results");
  const Common<T> common(call, arguments, cell);
  const auto [steps, batch, inputs, units] =
      std::tuple(common.steps, common.batch, common.inputs, common.units);
  const bool has_c = common.c_0;
  const T* const y = arguments.take<const T>({steps, batch, units});
  const T *saved = nullptr, *cells = nullptr;
  if (common.facts.saved > 0)
    saved = arguments.take<const T>({steps * batch, common.facts.saved, units});
  if (has_c) cells = arguments.take<const T>({steps * batch, units});
  const T* const dy = arguments.take<const T>({steps, batch, units});
  const T* const dh_n = arguments.take<const T>({batch, units});
  const T* const dc_n = has_c ? arguments.take<const T>({batch, units}) : nullptr;

  const auto cleared = [&](std::initializer_list<Index> shape) {
    Index size = 1;
    for (const Index n : shape) size *= n;
    T* const data = results.take<T>(shape);
    std::fill_n(data, size, T(0));
    return data;
  };
  T* const dx = cleared({steps, batch, inputs});
  T* const dw_ih = cleared({common.rows, inputs});
  T* const dw_hh = common.parameters.w_hh ? cleared({common.rows, units}) : nullptr;
  T* const dbias = cleared({common.rows});
  T* const dbias_hn = common.parameters.bias_hn ? cleared({units}) : nullptr;
  T* const dunit_weights =
      common.parameters.unit_weights ? cleared({common.facts.unit_weights, units}) : nullptr;
  T* const dh = results.take<T>({batch, units});
  T* const dc = has_c ? results.take<T>({batch, units}) : nullptr;
  std::copy_n(dh_n, batch * units, dh);
  if (has_c) std::copy_n(dc_n, batch * units, dc);

  const PackedWeights<T> packed(common.cell, common.parameters, Pass::backward, true,
                                common.compute);
  backward<T>(common.cell,
              {.schedule = common.schedule(),
               .inputs = inputs,
               .units = units,
               .outputs = units,
               .x = common.sequence(common.x, inputs),
               .tokens = {},
               .h_0 = common.h_0,
               .c_0 = common.c_0,
               .y = common.sequence(y, units),
               .saved = saved,
               .cells = cells,
               .dy = common.sequence(dy, units),
               .dh = dh,
               .dc = dc,
               .dx = common.sequence(dx, inputs),
               .dw_ih = dw_ih,
               .dw_hh = dw_hh,
               .dbias = dbias,
               .dbias_hn = dbias_hn,
               .dunit_weights = dunit_weights,
               .state_gradients = nullptr},
              common.compute, packed);
}

xla::Error* failed(const xla::Call& call, const char* message, std::int32_t code) {
  const std::string text = std::string("rnnkern: ") + message;
  xla::ErrorArguments arguments{sizeof arguments, nullptr, text.c_str(), code};
  return call.api->make_error(&arguments);
}

// Whether the runtime only asked which version this speaks: every minor one of the major one.
bool answered_metadata(const xla::Call& call) {
  if (!call.extensions || call.extensions->type != xla::kAsksForMetadata) return false;
  auto& version = reinterpret_cast<xla::MetadataExtension*>(call.extensions)->metadata->version;
  version.major = xla::kMajorVersion;
  version.minor = call.api ? call.api->version.minor : 0;
  return true;
}

template <class OfFloat, class OfDouble>
xla::Error* handle(xla::Call* call, OfFloat of_float, OfDouble of_double) {
  if (answered_metadata(*call)) return nullptr;
  try {
    if (call->size < sizeof(xla::Call))
      throw std::invalid_argument("this version of XLA's runtime calls in another way");
    const Index cell = attribute(*call, "cell");
    if (cell < 0 || cell >= AllCells::size)
      throw std::invalid_argument("attribute cell must be one of the list of cells");
    if (call->arguments.count > 0 && call->arguments.buffers[0]->dtype == xla::DataType::f64) {
      of_double(*call, cell);
    } else {
      of_float(*call, cell);
    }
  } catch (const std::invalid_argument& error) {
    return failed(*call, error.what(), xla::kInvalidArgument);
  } catch (const std::exception& error) {
    return failed(*call, error.what(), xla::kInternal);
  }
  return nullptr;
}

xla::Error* jax_forward(xla::Call* call) {
  return handle(call, forward_call<float>, forward_call<double>);
}

xla::Error* jax_backward(xla::Call* call) {
  return handle(call, backward_call<float>, backward_call<double>);
}

}  // namespace

void bind_jax(py::module_& m) {
  // As jax.ffi.register_ffi_target takes them.
  const auto capsule = [](xla::Handler* handler) {
    return py::capsule(reinterpret_cast<void*>(handler), "xla._CUSTOM_CALL_TARGET");
  };
  m.attr("jax_forward") = capsule(jax_forward);
  m.attr("jax_backward") = capsule(jax_backward);
}

}  // namespace rnnkern
