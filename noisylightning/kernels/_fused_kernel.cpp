// Corrected cross-entropy and its slope for a dense T, one sample after the other: its logits z and one row of a table
// are read, the slope is written.
//
// The vectors are the compiler's own (gcc, clang), so that the same lines serve every processor; nothing of torch is
// included, so that one build serves every version of torch and Python. The callers are in _fused.py.

#define Py_LIMITED_API 0x030a0000
#include <Python.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define INLINED __attribute__((always_inline))

namespace {

template <int lanes>
struct Vector {
  typedef float Floats __attribute__((vector_size(4 * lanes)));
  typedef uint32_t Words __attribute__((vector_size(4 * lanes)));
  typedef uint16_t Halves __attribute__((vector_size(2 * lanes)));
};
template <int lanes>
using Floats = typename Vector<lanes>::Floats;
template <int lanes>
using Words = typename Vector<lanes>::Words;
template <int lanes>
using Halves = typename Vector<lanes>::Halves;

template <class To, class From>
INLINED inline To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

struct BFloat16 {
  uint16_t bits;
};

template <int lanes>
INLINED inline Floats<lanes> load(const float* from) {
  Floats<lanes> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <int lanes>
INLINED inline Floats<lanes> load(const BFloat16* from) {
  Halves<lanes> x;
  std::memcpy(&x, from, sizeof x);
  return same_bits<Floats<lanes>>(__builtin_convertvector(x, Words<lanes>) << 16);
}

template <int lanes>
INLINED inline void store(float* to, Floats<lanes> x) {
  std::memcpy(to, &x, sizeof x);
}

template <int lanes>
INLINED inline void store(BFloat16* to, Floats<lanes> x) {
  const auto bits = same_bits<Words<lanes>>(x);
  const Words<lanes> even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to the even one
  const Words<lanes> rounded = x == x ? even : (bits >> 16) | 0x40;      // NaN stays NaN
  const auto halves = __builtin_convertvector(rounded, Halves<lanes>);
  std::memcpy(to, &halves, sizeof halves);
}

// One number of all the lanes, half with half.
template <int lanes, class F>
INLINED inline float fold(Floats<lanes> x, F combine) {
  if constexpr (lanes == 1) {
    return x[0];
  } else {
    Floats<lanes / 2> half[2];
    std::memcpy(half, &x, sizeof x);
    return fold<lanes / 2>(combine(half[0], half[1]), combine);
  }
}

template <int lanes>
INLINED inline float sum(Floats<lanes> x) {
  return fold<lanes>(x, [](auto a, auto b) INLINED { return a + b; });
}

template <int lanes>
INLINED inline float largest(Floats<lanes> x) {
  return fold<lanes>(x, [](auto a, auto b) INLINED { return a > b ? a : b; });
}

// e^x for x <= 0, to a unit or two in the last place; zero where float32 would leave its normal numbers; NaN stays NaN.
template <int lanes>
INLINED inline Floats<lanes> exponential(Floats<lanes> x) {
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, into the lowest bits
  const Floats<lanes> shifted = x * 1.44269504f + round;
  const Floats<lanes> n = shifted - round;
  const Floats<lanes> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // x - n ln 2, ln 2 in two parts
  // The polynomial of the Cephes library (Moshier): e^r for |r| <= ln(2) / 2.
  Floats<lanes> p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const auto power = same_bits<Floats<lanes>>((same_bits<Words<lanes>>(shifted) + 127) << 23);  // 2^n
  return x < -87.0f ? Floats<lanes>{} : p * power;
}

// Calls f(width, i) for consecutive pieces of the numbers 0..n-1: as many of the widest as go in, then of 4, then of 1.
template <int widest, class F>
INLINED inline void for_pieces(int64_t n, F f) {
  int64_t i = 0;
  for (; i + widest <= n; i += widest) f(std::integral_constant<int, widest>{}, i);
  if constexpr (widest > 4) {
    for (; i + 4 <= n; i += 4) f(std::integral_constant<int, 4>{}, i);
  }
  for (; i < n; ++i) f(std::integral_constant<int, 1>{}, i);
}

// Every sample has a row of the table, t: its label's column of T, or row of T^-1. Its value is
//   log sum_i p_i t_i  (forward correction: the log-likelihood of the noisy label), or
//   sum_i t_i log p_i  (backward correction),
// and its difference is the value's slope, times -factor: p - r with r_i = p_i t_i / sum_j p_j t_j, or p sum_j t_j - t.
enum Correction { forward, backward };

struct Problem {
  const void* logits;     // (samples, classes)
  const int64_t* labels;  // (samples,)
  const float* table;     // (classes, classes)
  int64_t classes;
  float* values;     // (samples,)
  void* difference;  // (samples, classes), or null
  float factor;
  bool label_out_of_range;
};

template <class Number, Correction correction, int widest>
INLINED inline void rows(int64_t begin, int64_t end, void* context) {
  constexpr bool keeps_p = std::is_same_v<Number, float>;  // else it would be rounded, and is worked out again
  Problem& problem = *static_cast<Problem*>(context);
  const int64_t classes = problem.classes;
  for (int64_t sample = begin; sample < end; ++sample) {
    const int64_t label = problem.labels[sample];
    if (label < 0 || label >= classes) {
      __atomic_store_n(&problem.label_out_of_range, true, __ATOMIC_RELAXED);
      return;
    }
    const Number* z = static_cast<const Number*>(problem.logits) + sample * classes;
    const float* t = problem.table + label * classes;
    Number* difference = static_cast<Number*>(problem.difference);
    if (difference) difference += sample * classes;

    Floats<widest> wide_top = Floats<widest>{} - INFINITY;
    float top = -INFINITY;
    for_pieces<widest>(classes, [&](auto width, int64_t i) INLINED {
      const auto x = load<width>(z + i);
      if constexpr (width == widest) {
        wide_top = x > wide_top ? x : wide_top;
      } else {
        top = largest<width>(x) > top ? largest<width>(x) : top;
      }
    });
    top = largest<widest>(wide_top) > top ? largest<widest>(wide_top) : top;

    // Sums of e^x, and of e^x t or x t, where x = z - top; of t.
    Floats<widest> wide_p{}, wide_q{}, wide_t{};
    float all_p = 0, all_q = 0, all_t = 0;
    for_pieces<widest>(classes, [&](auto width, int64_t i) INLINED {
      const Floats<width> x = load<width>(z + i) - top, p = exponential<width>(x), weight = load<width>(t + i);
      const Floats<width> q = (correction == forward ? p : x) * weight;
      if constexpr (keeps_p) {
        if (difference) store<width>(difference + i, p);
      }
      if constexpr (width == widest) {
        wide_p += p;
        wide_q += q;
        if constexpr (correction == backward) wide_t += weight;
      } else {
        all_p += sum<width>(p);
        all_q += sum<width>(q);
        if constexpr (correction == backward) all_t += sum<width>(weight);
      }
    });
    all_p += sum<widest>(wide_p);
    all_q += sum<widest>(wide_q);
    all_t += sum<widest>(wide_t);
    problem.values[sample] = correction == forward ? std::log(all_q / all_p) : all_q - all_t * std::log(all_p);

    if (difference) {
      const float of_p = problem.factor * (correction == forward ? 1 : all_t) / all_p;
      const float of_t = problem.factor / (correction == forward ? all_q : 1);
      for_pieces<widest>(classes, [&](auto width, int64_t i) INLINED {
        Floats<width> p;
        if constexpr (keeps_p) {
          p = load<width>(difference + i);
        } else {
          p = exponential<width>(load<width>(z + i) - top);
        }
        const Floats<width> r = load<width>(t + i) * of_t;
        store<width>(difference + i, correction == forward ? p * (of_p - r) : p * of_p - r);
      });
    }
  }
}

typedef void (*Rows)(int64_t, int64_t, void*);

// A vector wider than the processor's own would be taken apart number by number.
template <class Number, Correction correction>
void rows_by_4(int64_t begin, int64_t end, void* problem) {
  rows<Number, correction, 4>(begin, end, problem);
}

#if defined(__x86_64__)
template <class Number, Correction correction>
__attribute__((target("avx2,fma"))) void rows_by_8(int64_t begin, int64_t end, void* problem) {
  rows<Number, correction, 8>(begin, end, problem);
}

template <class Number, Correction correction>
__attribute__((target("avx512f,avx512bw"))) void rows_by_16(int64_t begin, int64_t end, void* problem) {
  rows<Number, correction, 16>(begin, end, problem);
}
#endif

template <class Number, Correction correction>
Rows widest_rows() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) return rows_by_16<Number, correction>;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return rows_by_8<Number, correction>;
#endif
  return rows_by_4<Number, correction>;
}

typedef int32_t (*ParallelFor)(int64_t begin, int64_t end, int64_t grain, Rows, void* context);

PyObject* evaluate(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 12) {
    PyErr_SetString(PyExc_TypeError, "evaluate takes 12 arguments.");
    return nullptr;
  }
  const auto address = [&](int i) { return PyLong_AsVoidPtr(arguments[i]); };
  const auto number = [&](int i) { return PyLong_AsLongLong(arguments[i]); };
  const auto parallel_for = reinterpret_cast<ParallelFor>(address(0));
  const bool is_backward = number(1) != 0, is_bfloat16 = number(2) != 0;
  const int64_t samples = number(6);
  Problem problem{
      address(3),
      static_cast<const int64_t*>(address(4)),
      static_cast<const float*>(address(5)),
      number(7),
      static_cast<float*>(address(8)),
      address(9),
      static_cast<float>(PyFloat_AsDouble(arguments[10])),
      false,
  };
  const double smallest = PyFloat_AsDouble(arguments[11]);
  if (PyErr_Occurred()) return nullptr;

  static const Rows all_rows[2][2] = {
      {widest_rows<float, forward>(), widest_rows<BFloat16, forward>()},
      {widest_rows<float, backward>(), widest_rows<BFloat16, backward>()},
  };
  const Rows rows = all_rows[is_backward][is_bfloat16];
  const int64_t grain = 1 + 32768 / (problem.classes + 1);  // samples that are worth a thread
  int32_t failed = 0;
  double total = 0;
  Py_BEGIN_ALLOW_THREADS;
  if (parallel_for && samples > grain) {
    failed = parallel_for(0, samples, grain, rows, &problem);
  } else {
    rows(0, samples, &problem);
  }
  for (int64_t sample = 0; sample < samples; ++sample) {
    total += problem.values[sample] > smallest ? problem.values[sample] : NAN;
  }
  Py_END_ALLOW_THREADS;
  if (failed || problem.label_out_of_range) {
    PyErr_SetString(failed ? PyExc_RuntimeError : PyExc_IndexError,
                    failed ? "torch's threads failed." : "a label is out of range.");
    return nullptr;
  }
  return PyFloat_FromDouble(total);
}

PyMethodDef methods[] = {
    {"evaluate", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(evaluate)), METH_FASTCALL,
     "Writes values and difference; returns the sum of the values, or NaN where one of them is not above smallest."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fused_kernel", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__fused_kernel() { return PyModule_Create(&module); }
