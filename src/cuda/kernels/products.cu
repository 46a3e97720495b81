// Activations, and the products of heads in true f32. Any grid of 256 threads is right.

#define GELU 0u
#define GELU_TANH 1u
#define SILU 2u
#define RELU 3u
#define RELU_SQUARED 4u
#define TANH 5u
#define NO_ACTIVATION 255u

// Of what is rounded to 16 bits afterwards the quick exponential does.
INLINE float exponential(float x, float) { return expf(x); }
template <class T> INLINE float exponential(float x, T) { return __expf(x); }
INLINE float relu(float x) { return x < 0.f ? 0.f : x; } // NaN stays

template <class T, class F> INLINE void each_of(float* v, F f) {
  #pragma unroll
  for (int i = 0; i < 8; i++) v[i] = f(v[i]);
}
template <class T> INLINE void activate8(float* v, u32 activation) {
  switch (activation) {
    case GELU: each_of<T>(v, [](float x) { return 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); }); break;
    case GELU_TANH: each_of<T>(v, [](float x) { return 0.5f * x * (1.f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x))); }); break;
    case SILU: each_of<T>(v, [](float x) { return x / (1.f + exponential(-x, T{})); }); break;
    case RELU: each_of<T>(v, [](float x) { return relu(x); }); break;
    case RELU_SQUARED: each_of<T>(v, [](float x) { return relu(x) * relu(x); }); break;
    case TANH: each_of<T>(v, [](float x) { return tanhf(x); }); break;
    default: break;
  }
}

template <class T> INLINE void activate(const T* x, u32 x_stride, T* out, u32 out_stride, u32 rows, u32 width, u32 activation) {
  each_eight(rows, width, [&](u64 row, u32 column, u32 count) {
    float v[8];
    load8(x + row * x_stride + column, count, v);
    activate8<T>(v, activation);
    store8(out + row * out_stride + column, count, v);
  });
}

// Of rows [gate | up].
template <class T> INLINE void gate(const T* x, u32 x_stride, T* out, u32 out_stride, u32 rows, u32 width, u32 activation) {
  each_eight(rows, width, [&](u64 row, u32 column, u32 count) {
    float v[8], up[8];
    load8(x + row * x_stride + column, count, v);
    load8(x + row * x_stride + width + column, count, up);
    activate8<T>(v, activation);
    #pragma unroll
    for (int i = 0; i < 8; i++) v[i] *= up[i];
    store8(out + row * out_stride + column, count, v);
  });
}

// y = activation(x · weightᵀ + bias). A warp has one output of four rows, each summed in an order that `inputs` decides.
extern "C" __global__ void __launch_bounds__(256) product_f(const float* x, u32 x_stride, const float* weight, u32 weight_stride, const float* bias, float* y, u32 y_stride, u32 rows, u32 inputs, u32 outputs, u32 activation) {
  constexpr int ROWS_AT_ONCE = 4;
  const u64 total = (u64)divided_up(rows, ROWS_AT_ONCE) * outputs;
  const u32 lane = threadIdx.x & 31;
  for (u64 item = (u64)blockIdx.x * 8 + (threadIdx.x >> 5); item < total; item += (u64)gridDim.x * 8) {
    const u64 first = item / outputs * ROWS_AT_ONCE, output = item % outputs;
    float sums[ROWS_AT_ONCE] = {};
    for (u32 column = lane * 8; column < inputs; column += 256) {
      float w[8], v[8];
      load8(weight + output * weight_stride + column, inputs - column, w);
      #pragma unroll
      for (int r = 0; r < ROWS_AT_ONCE; r++) {
        if (first + r >= rows) break;
        load8(x + (first + r) * x_stride + column, inputs - column, v);
        #pragma unroll
        for (int i = 0; i < 8; i++) sums[r] += v[i] * w[i];
      }
    }
    #pragma unroll
    for (int r = 0; r < ROWS_AT_ONCE; r++) {
      float v[8] = {lanes_sum<32>(sums[r])};
      if (lane != 0 || first + r >= rows) continue;
      if (bias) v[0] += bias[output];
      activate8<float>(v, activation);
      y[(first + r) * y_stride + output] = v[0];
    }
  }
}
PLAYED(product_f)

#define ACTIVATIONS(L, T) \
  extern "C" __global__ void __launch_bounds__(256) activate_##L(const T* x, u32 x_stride, T* out, u32 out_stride, u32 rows, u32 width, u32 activation) { activate(x, x_stride, out, out_stride, rows, width, activation); } PLAYED(activate_##L) \
  extern "C" __global__ void __launch_bounds__(256) gate_##L(const T* x, u32 x_stride, T* out, u32 out_stride, u32 rows, u32 width, u32 activation) { gate(x, x_stride, out, out_stride, rows, width, activation); } PLAYED(gate_##L)
ACTIVATIONS(f, float)
ACTIVATIONS(b, bf16)
ACTIVATIONS(h, f16)
