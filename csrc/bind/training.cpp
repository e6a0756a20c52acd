// SPDX-License-Identifier: Apache-2.0
// What training takes beside layers: products, Adam, the loss, sums.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "bind/arguments.h"
#include "bind/gil.h"
#include "bind/host_arrays.h"
#include "bind/modules.h"
#include "cpu/engine.h"

namespace rnnkern {
namespace {

// A matrix and a bias, packed for many products with them.
class BoundMatrix {
 public:
  BoundMatrix(const py::handle& matrix, const py::handle& bias)
      : matrix_(by_type(HostArray(matrix, "matrix"), [&]<class T>(T) -> Any {
          const HostArray given(matrix, "matrix");
          if (given.axes != 2 || given.shape[0] < 1)
            given.refuse("have 2 axes and at least one row, got shape " + given.shape_text());
          const Index rows = given.shape[0], columns = given.shape[1];
          return PackedMatrix<T>(read<T>(matrix, "matrix", {rows, columns}),
                                 read<T>(bias, "bias", {rows}), rows, columns);
        })) {}

  py::object times(const py::handle& x, const py::object& out) const {
    const HostArray given(x, "x");
    return std::visit(
        [&]<class T>(const PackedMatrix<T>& matrix) {
          const Index count = given.axes > 0 ? given.shape[0] : 0;
          const T* const data = read<T>(x, "x", {count, matrix.columns()});
          py::object result = out.is_none() ? new_array<T>({count, matrix.rows()}) : out;
          T* const y = write<T>(result, "out", {count, matrix.rows()});
          if (y < data + given.size() && data < y + count * matrix.rows())
            throw std::invalid_argument("out must share no memory with x");
          const double flops = 2.0 * static_cast<double>(count) *
                               static_cast<double>(matrix.rows()) *
                               static_cast<double>(matrix.columns());
          if (count > 0) without_gil(flops, [&] { matrix.times(data, count, y); });
          return result;
        },
        matrix_);
  }

 private:
  using Any = std::variant<PackedMatrix<float>, PackedMatrix<double>>;

  Any matrix_;
};

py::object run_matmul(const py::handle& a, const py::handle& b, const py::object& out,
                      bool transpose_a, bool transpose_b, const py::handle& bias, bool accumulate) {
  const HostArray a_view(a, "a"), b_view(b, "b");
  if (a_view.axes != 2 || b_view.axes != 2) {
    throw std::invalid_argument("a and b must have 2 axes, got shapes " + a_view.shape_text() +
                                " and " + b_view.shape_text());
  }
  return by_type(a_view, [&]<class T>(T) {
    const Index rows = a_view.shape[transpose_a ? 1 : 0], depth = a_view.shape[transpose_a ? 0 : 1];
    const Index columns = b_view.shape[transpose_b ? 0 : 1];
    const T* left = read<T>(a, "a", {a_view.shape[0], a_view.shape[1]});
    const T* right =
        transpose_b ? read<T>(b, "b", {columns, depth}) : read<T>(b, "b", {depth, columns});
    if (accumulate && (out.is_none() || !bias.is_none())) {
      throw std::invalid_argument("accumulate needs out, and no bias");
    }
    const py::object result = out.is_none() ? new_array<T>({rows, columns}) : out;
    const MatmulProblem<T> problem{.rows = rows,
                                   .columns = columns,
                                   .depth = depth,
                                   .a = left,
                                   .a_row = transpose_a ? 1 : depth,
                                   .a_depth = transpose_a ? rows : 1,
                                   .b = right,
                                   .b_depth = transpose_b ? 1 : columns,
                                   .b_column = transpose_b ? depth : 1,
                                   .bias = read<T>(bias, "bias", {columns}),
                                   .c = write<T>(result, "out", {rows, columns}),
                                   .c_row = columns,
                                   .accumulate = accumulate};
    const auto apart = [&](const T* from, Index size) {
      return problem.c + rows * columns <= from || from + size <= problem.c;
    };
    if (!apart(left, a_view.size()) || !apart(right, b_view.size()))
      throw std::invalid_argument("out must share no memory with a or b");
    const double flops =
        2.0 * static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(depth);
    if (rows > 0 && columns > 0) without_gil(flops, [&] { matmul(problem); });
    return result;
  });
}

py::object run_activation(const std::string& name, const py::handle& x) {
  if (name != "tanh" && name != "sigmoid" && name != "exp_negative") {
    throw std::invalid_argument("name must be 'tanh', 'sigmoid' or 'exp_negative', got '" + name +
                                "'");
  }
  const HostArray given(x, "x");
  return by_type(given, [&]<class T>(T) {
    const Index size = given.size();
    const T* in = read<T>(x, "x", {size});
    const py::object out = new_array<T>({size});
    const auto& kernels = chosen_backend().backend->kernels<T>();
    const auto run = name == "tanh"      ? kernels.tanh
                     : name == "sigmoid" ? kernels.sigmoid
                                         : kernels.exp_negative;
    run(in, write<T>(out, "out", {size}), size);
    return out;
  });
}

void run_adam(const py::handle& p, const py::handle& g, const py::handle& first,
              const py::handle& second, double decay, double first_beta, double second_beta,
              double epsilon, double rate) {
  const HostArray given(p, "p");
  by_type(given, [&]<class T>(T) {
    const Index size = given.size();
    AdamProblem<T> problem{.size = size,
                           .p = flat<T>(p, "p", size),
                           .g = flat<const T>(g, "g", size),
                           .first = flat<T>(first, "first", size),
                           .second = flat<T>(second, "second", size),
                           .decay = static_cast<T>(decay),
                           .first_beta = static_cast<T>(first_beta),
                           .second_beta = static_cast<T>(second_beta),
                           .epsilon = static_cast<T>(epsilon),
                           .rate = static_cast<T>(rate)};
    const GilReleased release;
    chosen_backend().backend->kernels<T>().adam(problem);
  });
}

double sum_of_squares(const py::handle& x) {
  const HostArray given(x, "x");
  return by_type(given, [&]<class T>(T) {
    const Index size = given.size();
    const T* data = flat<const T>(x, "x", size);
    const GilReleased release;
    return chosen_backend().backend->kernels<T>().sum_of_squares(data, size);
  });
}

// Long sums of float32 lose digits: so many rows are summed by themselves.
constexpr Index kRowsOfASum = 128;

// To each row of sums (count, columns) those of `rows` (N, columns) whose token is its number, in their
// order. Tokens are linked by value first, so that one token's rows are summed in one go.
template <class T>
void add_by_token(const std::vector<Index>& tokens, const T* rows, Index columns, Index count,
                  T* sums) {
  const auto size = static_cast<Index>(tokens.size());
  constexpr Index none = -1;
  std::vector<Index> first(static_cast<std::size_t>(count), none), next(tokens.size(), none);
  for (Index i = size - 1; i >= 0; --i) {
    const auto token = static_cast<std::size_t>(tokens[static_cast<std::size_t>(i)]);
    next[static_cast<std::size_t>(i)] = std::exchange(first[token], i);
  }
  std::vector<T> part(static_cast<std::size_t>(columns));
  const auto add = [columns](T* to, const T* from) {
    for (Index j = 0; j < columns; ++j) to[j] += from[j];
  };
  for (Index token = 0; token < count; ++token) {
    T* const sum = sums + token * columns;
    Index summed = 0;
    for (Index i = first[static_cast<std::size_t>(token)]; i != none;
         i = next[static_cast<std::size_t>(i)], ++summed) {
      const T* const row = rows + i * columns;
      if (summed < kRowsOfASum) {
        add(sum, row);
        continue;
      }
      if (summed % kRowsOfASum == 0) {
        if (summed > kRowsOfASum) add(sum, part.data());
        std::copy_n(row, columns, part.data());
      } else {
        add(part.data(), row);
      }
    }
    if (summed > kRowsOfASum) add(sum, part.data());
  }
}

void run_add_by_token(const py::handle& tokens, const py::handle& rows, const py::handle& sums) {
  const HostArray given(rows, "rows"), wanted(sums, "sums");
  if (given.axes != 2) given.refuse("have 2 axes, got shape " + given.shape_text());
  if (wanted.axes != 2) wanted.refuse("have 2 axes, got shape " + wanted.shape_text());
  by_type(given, [&]<class T>(T) {
    const Index size = given.shape[0], columns = given.shape[1], count = wanted.shape[0];
    const T* const from = read<T>(rows, "rows", {size, columns});
    T* const to = write<T>(sums, "sums", {count, columns});
    if (from < to + count * columns && to < from + size * columns)
      throw std::invalid_argument("sums must share no memory with rows");
    const auto own = copied(read<std::int64_t>(required(tokens, "tokens"), "tokens", {size}), size);
    for (const Index token : own) {
      if (token < 0 || token >= count) {
        throw std::invalid_argument("tokens must be in 0.." + std::to_string(count - 1) + ", got " +
                                    std::to_string(token));
      }
    }
    if (own.empty() || columns == 0) return;
    without_gil(static_cast<double>(size) * static_cast<double>(columns),
                [&] { add_by_token(own, from, columns, count, to); });
  });
}

// Like the targets, what decides whether a target is looked at; a byte that is not 0 is true.
std::unique_ptr<bool[]> copied_mask(const py::handle& mask, Index rows) {
  if (mask.is_none()) return nullptr;
  const auto* bytes = static_cast<const volatile unsigned char*>(
      static_cast<const void*>(read<bool>(mask, "mask", {rows})));
  std::unique_ptr<bool[]> copy(new bool[static_cast<std::size_t>(rows)]);
  std::transform(bytes, bytes + rows, copy.get(), [](unsigned char byte) { return byte != 0; });
  return copy;
}

double run_softmax_cross_entropy(const py::handle& logits, const py::handle& targets,
                                 const py::handle& mask, double weight,
                                 const py::handle& gradient) {
  const HostArray given(logits, "logits");
  if (given.axes != 2) given.refuse("have 2 axes, got shape " + given.shape_text());
  return by_type(given, [&]<class T>(T) {
    const Index rows = given.shape[0], classes = given.shape[1];
    const auto target =
        copied(read<std::int64_t>(required(targets, "targets"), "targets", {rows}), rows);
    const auto counts = copied_mask(mask, rows);
    const SoftmaxProblem<T> problem{
        .rows = rows,
        .classes = classes,
        .logits = read<T>(logits, "logits", {rows, classes}),
        .targets = target.data(),
        .mask = counts.get(),
        .weight = static_cast<T>(weight),
        .gradient = write<T>(required(gradient, "gradient"), "gradient", {rows, classes})};
    for (Index i = 0; i < rows; ++i) {
      const Index wanted = problem.targets[i];
      if ((!problem.mask || problem.mask[i]) && (wanted < 0 || wanted >= classes)) {
        throw std::invalid_argument("targets must be in 0.." + std::to_string(classes - 1) +
                                    ", got " + std::to_string(wanted));
      }
    }
    const GilReleased release;
    return chosen_backend().backend->kernels<T>().softmax_cross_entropy(problem);
  });
}

}  // namespace

void bind_training(py::module_& m) {
  py::class_<BoundMatrix>(m, "PackedMatrix", "A matrix and a bias, packed for many products.")
      .def(py::init<const py::handle&, const py::handle&>(), py::arg("matrix"), py::arg("bias"),
           "matrix (N, K) and bias (N,) or None.")
      .def(
          "times",
          [](const py::handle& self, const py::handle& x, const py::object& out) {
            return built<BoundMatrix>(self, "self").times(x, out);
          },
          py::arg("x"), py::arg("out") = py::none(), "x @ matrix.T + bias of x (M, K).");

  m.def("matmul", run_matmul, py::arg("a"), py::arg("b"), py::arg("out") = py::none(),
        py::kw_only(), py::arg("transpose_a") = false, py::arg("transpose_b") = false,
        py::arg("bias") = py::none(), py::arg("accumulate") = false,
        "a @ b + bias for C-contiguous 2-D arrays; with accumulate, out += a @ b.");
  m.def("activation", run_activation, py::arg("name"), py::arg("x"),
        "tanh, sigmoid or exp of numbers up to 0, for a 1-D array, as the kernels compute it.");
  m.def(
      "adam", run_adam, py::arg("p"), py::arg("g"), py::arg("first"), py::arg("second"),
      py::kw_only(), py::arg("decay"), py::arg("first_beta"), py::arg("second_beta"),
      py::arg("epsilon"), py::arg("rate"),
      "first = first_beta first + g; second = second_beta second + g^2; p = decay p - rate first / "
      "(sqrt(second) + epsilon), for C-contiguous arrays of one size.");
  m.def("sum_of_squares", sum_of_squares, py::arg("x"),
        "In the array's dtype block by block, the blocks in float64.");
  m.def("add_by_token", run_add_by_token, py::arg("tokens"), py::arg("rows"), py::arg("sums"),
        "Adds to each row of sums (count, D) those of rows (N, D) whose token (N,) is its number.");
  m.def("softmax_cross_entropy", run_softmax_cross_entropy, py::arg("logits"), py::arg("targets"),
        py::arg("mask"), py::arg("weight"), py::arg("gradient"),
        "The sum of -log softmax(logits)[target] over the rows that mask (or None) lets count; "
        "weight times its gradient is written.");
}

}  // namespace rnnkern
