// The Python module: every check of shapes, strides and dtypes, and no algorithm.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <thread>

#include "kernels.h"
#include "tensors.h"
#include "tiles_binding.h"
#include "transfer.h"

namespace nb = nanobind;

namespace radix {
namespace {

// Work below this many bytes of memory traffic (about 50 µs) keeps the interpreter lock.
constexpr int64_t kReleaseBytes = 1 << 20;

class Unlocked {
 public:
  explicit Unlocked(int64_t work_bytes) {
    if (work_bytes > kReleaseBytes) released_.emplace();
  }

 private:
  std::optional<nb::gil_scoped_release> released_;
};

[[noreturn]] void refuse(const Tensor& t, std::string way_out) {
  throw ArgumentError(t.argument, t.describe(), std::move(way_out));
}

void expect(bool holds, const Tensor& t, const char* way_out) {
  if (!holds) refuse(t, way_out);
}

std::string shape_text(std::initializer_list<int64_t> shape) {
  std::string text = "[";
  for (int64_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

void expect_shape(const Tensor& t, std::initializer_list<int64_t> shape) {
  bool same = t.ndim() == static_cast<int>(shape.size());
  int i = 0;
  for (int64_t n : shape) same = same && t.size(i++) == n;
  if (!same) refuse(t, "must have shape " + shape_text(shape));
}

void expect_element(const Tensor& t, Element element, const char* way_out) {
  expect(t.element == element, t, way_out);
}

DType real(const Tensor& t) {
  if (t.element == Element::f32) return DType::f32;
  if (t.element == Element::bf16) return DType::bf16;
  refuse(t, "use float32 or bfloat16");
}

void expect_same(const Tensor& t, const Tensor& other) {
  if (t.element != other.element)
    refuse(t, std::string("must have the dtype of ") + other.argument);
}

int64_t bytes_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

Matrix matrix(const Tensor& t) {
  expect(t.ndim() == 2, t, "must have 2 dimensions");
  expect(t.stride(1) == 1 || t.size(1) == 1, t, "the last dimension must be dense");
  return {t.data<void>(), real(t), t.size(0), t.size(1), t.stride(0)};
}

Heads heads(const Tensor& t) {
  expect(t.ndim() == 3, t, "must have 3 dimensions: [tokens, heads, head_dim]");
  expect(t.stride(2) == 1 || t.size(2) == 1, t, "the last dimension must be dense");
  return {t.data<void>(), real(t), t.size(0), t.size(1), t.size(2), t.stride(0), t.stride(1)};
}

Pages pages(const Tensor& t) {
  expect(t.ndim() == 4, t, "must have 4 dimensions: [num_pages, page_size, heads, head_dim]");
  expect(t.stride(3) == 1 || t.size(3) == 1, t, "the last dimension must be dense");
  return {t.data<void>(), real(t),     t.size(0),   t.size(1),  t.size(2),
          t.size(3),      t.stride(0), t.stride(1), t.stride(2)};
}

Tensor dense_vector(Tensor t, Element element, const char* way_out) {
  expect(t.element == element, t, way_out);
  expect(t.ndim() == 1 && t.is_dense(), t, "must be one dense dimension");
  return t;
}

// A dense vector of parameters, f32 or bf16.
Tensor parameters(Tensor t, int64_t size) {
  real(t);
  expect_shape(t, {size});
  expect(t.is_dense(), t, "must be dense");
  return t;
}

// Values that are indices are checked too: a wrong one would read or write foreign memory.
template <class T>
void expect_range(const Tensor& t, int64_t limit, const char* what) {
  const T* values = t.data<const T>();
  for (int64_t i = 0; i < t.size(0); ++i) {
    if (values[i] < 0 || values[i] >= limit) {
      throw ArgumentError(
          t.argument, std::to_string(values[i]) + " at " + std::to_string(i),
          std::string("must be within [0, ") + std::to_string(limit) + "), " + what);
    }
  }
}

// The rows of one step, checked once and used by every layer.
class AttentionPlan {
 public:
  AttentionPlan(const Exchange& exchange, nb::handle query_start, nb::handle kv_lens,
                nb::handle page_table, int64_t page_size)
      : owners_{nb::borrow(query_start), nb::borrow(kv_lens), nb::borrow(page_table)},
        page_size(page_size) {
    const char* ints = "must be int32";
    const Tensor start =
        dense_vector(exchange.view(query_start.ptr(), "query_start"), Element::i32, ints);
    const Tensor lens = dense_vector(exchange.view(kv_lens.ptr(), "kv_lens"), Element::i32, ints);
    const Tensor table = exchange.view(page_table.ptr(), "page_table");
    expect_element(table, Element::i32, ints);
    expect(table.ndim() == 2 && (table.stride(1) == 1 || table.size(1) <= 1), table,
           "must be [rows, pages] with a dense last dimension");
    rows = lens.size(0);
    expect_shape(start, {rows + 1});
    expect(table.size(0) == rows, table, "must have one row per entry of kv_lens");
    this->query_start = start.data<const int32_t>();
    this->kv_lens = lens.data<const int32_t>();
    this->page_table = table.data<const int32_t>();
    table_stride = table.stride(0);
    expect(this->query_start[0] == 0, start, "must begin with 0");
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t queries = this->query_start[row + 1] - this->query_start[row];
      const int64_t len = this->kv_lens[row];
      expect(queries >= 0, start, "must not decrease");
      expect(len >= queries && len <= table.size(1) * page_size, lens,
             "must be at least the row's queries and at most its page table's tokens");
      const int32_t* mine = this->page_table + row * table_stride;
      for (int64_t i = 0; i < (len + page_size - 1) / page_size; ++i) {
        expect(mine[i] >= 0, table, "must not have negative pages");
        max_page = std::max<int64_t>(max_page, mine[i]);
      }
      kv_tokens += len;
    }
    tokens = this->query_start[rows];
  }

 private:
  nb::object owners_[3];

 public:
  int64_t page_size, rows = 0, tokens = 0, kv_tokens = 0, max_page = 0, table_stride = 0;
  const int32_t *query_start = nullptr, *kv_lens = nullptr, *page_table = nullptr;
};

class Kernels {
 public:
  Kernels(nb::handle tensor_type, const std::string& name, int num_threads)
      : exchange_(tensor_type.ptr()), table_(nullptr) {
    std::string names;
    for (int i = 0; i < num_variants(); ++i) {
      if (table_ == nullptr && (name == "best" || name == variant(i).name)) table_ = &variant(i);
      names += std::string(", ") + variant(i).name;
    }
    if (table_ == nullptr) throw ArgumentError("variant", name, "use one of best" + names);
    if (num_threads < 0 || num_threads > 1024) {
      throw ArgumentError("num_threads", std::to_string(num_threads),
                          "use 0 (all processors) or a positive number");
    }
    const int all = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    pool_ = ThreadPool::shared(num_threads == 0 ? all : num_threads);
  }

  const char* name() const { return table_->name; }
  int num_threads() const { return pool_->num_threads(); }

  nb::object linear(nb::handle x, nb::handle weight, nb::handle bias, bool f32_out) const {
    return product(table_->linear, x, weight, bias, f32_out);
  }

  nb::object gemm(nb::handle x, nb::handle weight, nb::handle bias, bool f32_out) const {
    return product(table_->gemm, x, weight, bias, f32_out);
  }

  nb::object rms_norm(nb::handle x_, nb::handle weight_, float eps, bool add_one) const {
    const Tensor x = view(x_, "x");
    const Heads rows = norm_rows(x);
    const Tensor weight = parameters(view(weight_, "weight"), rows.dim);
    Tensor out;
    nb::object result = nb::steal(exchange_.allocate(x.element, x.ndim(), x.dl.shape, out));
    run_norm({rows, nullptr, nullptr, out.data<void>(), weight.data<void>(), real(weight), eps,
              add_one ? 1.0f : 0.0f});
    return result;
  }

  nb::tuple add_rms_norm(nb::handle x_, nb::handle residual_, nb::handle weight_, float eps,
                         bool add_one) const {
    const Tensor x = view(x_, "x"), residual = view(residual_, "residual");
    const Heads rows = norm_rows(x);
    const Tensor weight = parameters(view(weight_, "weight"), rows.dim);
    expect_same(residual, x);
    expect_shape(residual, {rows.tokens, rows.dim});
    expect(x.ndim() == 2, x, "must have 2 dimensions");
    expect(residual.is_dense(), residual, "must be dense");
    nb::object out = nb::borrow(x_), sum = nb::borrow(residual_);
    Tensor fresh = x;
    if (!x.is_dense() || x.data<void>() == residual.data<void>())
      out = nb::steal(exchange_.allocate(x.element, 2, x.dl.shape, fresh));
    run_norm({rows, residual.data<void>(), residual.data<void>(), fresh.data<void>(),
              weight.data<void>(), real(weight), eps, add_one ? 1.0f : 0.0f});
    return nb::make_tuple(out, sum);
  }

  void rope(nb::handle query_, nb::handle key_, nb::handle positions_, nb::handle cos_sin_) const {
    const Tensor query = view(query_, "query"), key = view(key_, "key");
    const Tensor positions =
        dense_vector(view(positions_, "positions"), Element::i64, "must be int64");
    const Tensor cos_sin = view(cos_sin_, "cos_sin");
    const Heads q = heads(query), k = heads(key);
    expect_same(key, query);
    expect(k.tokens == q.tokens && k.dim == q.dim, key, "must have query's tokens and head_dim");
    expect(q.dim % 2 == 0, query, "head_dim must be even");
    expect_shape(positions, {q.tokens});
    expect_element(cos_sin, Element::f32, "must be float32");
    expect(cos_sin.ndim() == 2 && cos_sin.size(1) == q.dim && cos_sin.stride(1) == 1, cos_sin,
           "must be [max_positions, head_dim] with a dense last dimension");
    expect_range<int64_t>(positions, cos_sin.size(0), "the rows of cos_sin");
    const Unlocked unlocked(q.tokens * (q.heads + k.heads) * q.dim * bytes_of(q.dtype));
    table_->rope(
        {q, k, positions.data<const int64_t>(), cos_sin.data<const float>(), cos_sin.stride(0)},
        *pool_);
  }

  nb::object gated_act(nb::handle gate_up_, const std::string& act) const {
    const Tensor gate_up = view(gate_up_, "gate_up");
    const Matrix in = matrix(gate_up);
    expect(in.cols % 2 == 0, gate_up, "the last dimension must be even: gate, then up");
    if (act != "silu" && act != "gelu_tanh")
      throw ArgumentError("act", act, "use \"silu\" or \"gelu_tanh\"");
    const int64_t shape[2] = {in.rows, in.cols / 2};
    Tensor out;
    nb::object result = nb::steal(exchange_.allocate(gate_up.element, 2, shape, out));
    const Unlocked unlocked(in.rows * in.cols * bytes_of(in.dtype));
    table_->gated_act({in, matrix(out), act == "silu" ? Activation::silu : Activation::gelu_tanh},
                      *pool_);
    return result;
  }

  void kv_write(nb::handle key_, nb::handle value_, nb::handle k_cache_, nb::handle v_cache_,
                nb::handle slots_) const {
    const Tensor key = view(key_, "key"), value = view(value_, "value");
    const Tensor k_cache = view(k_cache_, "k_cache"), v_cache = view(v_cache_, "v_cache");
    const Tensor slots = dense_vector(view(slots_, "slots"), Element::i64, "must be int64");
    const KvWriteArgs args{heads(key), heads(value), pages(k_cache), pages(v_cache),
                           slots.data<const int64_t>()};
    for (const auto* pair : {&key, &value}) {
      const Tensor& cache = pair == &key ? k_cache : v_cache;
      expect_same(cache, *pair);
      expect(cache.size(2) == pair->size(1) && cache.size(3) == pair->size(2), cache,
             "must have the heads and head_dim of what is written");
      expect_shape(slots, {pair->size(0)});
    }
    expect_range<int64_t>(slots, args.k_cache.num_pages * args.k_cache.page_size,
                          "slots of k_cache");
    expect_range<int64_t>(slots, args.v_cache.num_pages * args.v_cache.page_size,
                          "slots of v_cache");
    const Unlocked unlocked(4 * args.key.tokens * args.key.heads * args.key.dim *
                            bytes_of(args.key.dtype));
    radix::kv_write(args, *pool_);
  }

  void copy_page(nb::handle k_cache_, nb::handle v_cache_, int64_t source, int64_t target,
                 int64_t num_tokens) const {
    const Tensor caches[] = {view(k_cache_, "k_cache"), view(v_cache_, "v_cache")};
    for (const Tensor& cache : caches) {
      expect(cache.ndim() == 5, cache,
             "must have 5 dimensions: [num_layers, num_pages, page_size, heads, head_dim]");
      const int64_t token = cache.size(3) * cache.size(4);
      expect(cache.stride(4) == 1 && cache.stride(3) == cache.size(4) && cache.stride(2) == token,
             cache, "a page must be dense");
      for (const auto& [argument, page] :
           {std::pair{"source", source}, std::pair{"target", target}}) {
        if (page < 0 || page >= cache.size(1))
          throw ArgumentError(argument, std::to_string(page),
                              "must be a page of " + std::string(cache.argument));
      }
      if (num_tokens < 0 || num_tokens > cache.size(2))
        throw ArgumentError("num_tokens", std::to_string(num_tokens),
                            "must be at most the page size");
    }
    if (source == target) return;
    for (const Tensor& cache : caches) {
      const int64_t size = bytes_of(real(cache));
      radix::copy_page({cache.data<void>(), cache.size(0), cache.stride(0) * size,
                        cache.stride(1) * size, num_tokens * cache.stride(2) * size, source,
                        target});
    }
  }

  void move_pages(nb::handle k_cache_, nb::handle v_cache_, nb::handle host_, nb::handle pages_,
                  nb::handle host_pages_, int64_t first_layer, int64_t last_layer,
                  bool to_host) const {
    const Tensor keys = view(k_cache_, "k_cache"), values = view(v_cache_, "v_cache");
    const Tensor host = view(host_, "host");
    for (const Tensor* cache : {&keys, &values}) {
      expect(cache->ndim() == 5 && cache->is_dense(), *cache,
             "must be dense [num_layers, num_pages, page_size, heads, head_dim]");
      expect_same(*cache, keys);
      expect_shape(*cache,
                   {keys.size(0), keys.size(1), keys.size(2), keys.size(3), keys.size(4)});
    }
    expect_same(host, keys);
    expect(host.is_dense(), host, "must be dense");
    expect_shape(host, {host.size(0), keys.size(0), 2, keys.size(2), keys.size(3), keys.size(4)});
    const Tensor pages = dense_vector(view(pages_, "pages"), Element::i32, "must be int32");
    const Tensor host_pages =
        dense_vector(view(host_pages_, "host_pages"), Element::i32, "must be int32");
    expect_shape(host_pages, {pages.size(0)});
    expect_range<int32_t>(pages, keys.size(1), "pages of k_cache");
    expect_range<int32_t>(host_pages, host.size(0), "pages of host");
    if (first_layer < 0 || first_layer > last_layer || last_layer > keys.size(0)) {
      throw ArgumentError(
          "first_layer, last_layer",
          std::to_string(first_layer) + ", " + std::to_string(last_layer),
          "must be a range of the " + std::to_string(keys.size(0)) + " layers");
    }
    const int64_t chunk = keys.size(2) * keys.size(3) * keys.size(4) * bytes_of(real(keys));
    const Unlocked unlocked(2 * chunk * (last_layer - first_layer) * pages.size(0));
    radix::move_pages({keys.data<char>(), values.data<char>(), keys.size(1) * chunk, chunk,
                       host.data<char>(), 2 * keys.size(0) * chunk, chunk, first_layer, last_layer,
                       pages.data<const int32_t>(), host_pages.data<const int32_t>(),
                       pages.size(0), to_host});
  }

  void apply_token_mask(nb::handle logits_, nb::handle bitmask_) const {
    const Tensor logits = view(logits_, "logits"), bitmask = view(bitmask_, "bitmask");
    expect_element(logits, Element::f32, "must be float32");
    const Matrix rows = matrix(logits);
    expect_element(bitmask, Element::i32, "must be int32");
    expect_shape(bitmask, {rows.rows, (rows.cols + 31) / 32});
    expect(bitmask.stride(1) == 1 || bitmask.size(1) == 1, bitmask,
           "the last dimension must be dense");
    const Unlocked unlocked(rows.rows * rows.cols * 4);
    table_->token_mask({static_cast<float*>(rows.data), rows.rows, rows.cols, rows.stride,
                        bitmask.data<const int32_t>(), bitmask.stride(0)},
                       *pool_);
  }

  AttentionPlan plan_attention(nb::handle query_start, nb::handle kv_lens, nb::handle page_table,
                               int64_t page_size) const {
    return AttentionPlan(exchange_, query_start, kv_lens, page_table, page_size);
  }

  nb::object attention(const AttentionPlan& plan, nb::handle query_, nb::handle k_cache_,
                       nb::handle v_cache_, float scale, int64_t window, float softcap) const {
    const Tensor query = view(query_, "query");
    const Tensor k_cache = view(k_cache_, "k_cache"), v_cache = view(v_cache_, "v_cache");
    const Heads q = heads(query);
    const Pages k = pages(k_cache), v = pages(v_cache);
    expect(q.tokens == plan.tokens, query, "must have the tokens of the plan");
    for (const auto* cache : {&k_cache, &v_cache}) {
      expect_same(*cache, query);
      expect(cache->size(3) == q.dim, *cache, "must have query's head_dim");
      expect(cache->size(2) > 0 && q.heads % cache->size(2) == 0, *cache,
             "its heads must divide query's");
      expect(cache->size(1) == plan.page_size, *cache, "must have the plan's page size");
      expect(cache->size(0) > plan.max_page, *cache, "the page table names pages past its end");
    }
    expect(v.heads == k.heads, v_cache, "must have k_cache's heads");
    if (window < 0) throw ArgumentError("window", std::to_string(window), "use 0 (none) or more");
    const int64_t shape[3] = {q.tokens, q.heads, q.dim};
    Tensor out;
    nb::object result = nb::steal(exchange_.allocate(query.element, 3, shape, out));
    const int64_t per_row = plan.rows > 0 ? plan.tokens / plan.rows + 1 : 1;
    const Unlocked unlocked(per_row * plan.kv_tokens * (k.heads + q.heads / 8) * k.dim * 2);
    table_->attention({q, k, v, out.data<void>(), plan.rows, plan.query_start, plan.kv_lens,
                       plan.page_table, plan.table_stride, scale, window, softcap},
                      *pool_);
    return result;
  }

 private:
  Tensor view(nb::handle object, const char* argument) const {
    return exchange_.view(object.ptr(), argument);
  }

  nb::object product(void (*kernel)(const LinearArgs&, ThreadPool&), nb::handle x_,
                     nb::handle weight_, nb::handle bias_, bool f32_out) const {
    const Tensor x = view(x_, "x"), weight = view(weight_, "weight");
    LinearArgs args{matrix(x), matrix(weight), nullptr, DType::f32, {}};
    expect(weight.size(1) == x.size(1), weight, "must have the last dimension of x");
    if (!bias_.is_none()) {
      const Tensor bias = parameters(view(bias_, "bias"), weight.size(0));
      args.bias = bias.data<void>();
      args.bias_dtype = real(bias);
    }
    const int64_t shape[2] = {x.size(0), weight.size(0)};
    Tensor out;
    nb::object result =
        nb::steal(exchange_.allocate(f32_out ? Element::f32 : x.element, 2, shape, out));
    args.out = matrix(out);
    if (shape[0] == 0 || shape[1] == 0) return result;
    const Unlocked unlocked(args.weight.rows * args.weight.cols * (1 + args.x.rows / 4) *
                            bytes_of(args.weight.dtype));
    kernel(args, *pool_);
    return result;
  }

  static Heads norm_rows(const Tensor& x) {
    if (x.ndim() == 3) return heads(x);
    const Matrix m = matrix(x);
    return {m.data, m.dtype, m.rows, 1, m.cols, m.stride, m.cols};
  }

  void run_norm(const NormArgs& args) const {
    if (args.x.dim == 0) return;
    const Unlocked unlocked(4 * args.x.tokens * args.x.heads * args.x.dim * bytes_of(args.x.dtype));
    table_->rms_norm(args, *pool_);
  }

  Exchange exchange_;
  const KernelTable* table_;
  std::shared_ptr<ThreadPool> pool_;
};

std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
  for (int i = 0; i < num_variants(); ++i) names.emplace_back(variant(i).name);
  return names;
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const ArgumentError& error) {
    try {
      nb::object type = nb::module_::import_("radixrt.errors").attr("InvalidArgument");
      nb::object instance = type(error.argument, error.value, error.way_out);
      PyErr_SetObject(type.ptr(), instance.ptr());
    } catch (nb::python_error& failed) {
      failed.restore();
    }
  } catch (const PythonError&) {
    // set already
  }
}

}  // namespace
}  // namespace radix

NB_MODULE(_native, module) {
  using radix::AttentionPlan;
  using radix::Kernels;
  nb::register_exception_translator(radix::translate);
  module.def("cpu_features", &radix::cpu_features);
  radix::bind_tiles(module);
  nb::class_<AttentionPlan>(module, "AttentionPlan");
  nb::class_<Kernels>(module, "Kernels")
      .def(nb::init<nb::handle, const std::string&, int>(), nb::arg("tensor_type"),
           nb::arg("variant") = "best", nb::arg("num_threads") = 0)
      .def_prop_ro("variant", &Kernels::name)
      .def_prop_ro("num_threads", &Kernels::num_threads)
      .def("linear", &Kernels::linear, nb::arg("x"), nb::arg("weight"),
           nb::arg("bias").none() = nb::none(), nb::arg("f32_out") = false)
      .def("gemm", &Kernels::gemm, nb::arg("x"), nb::arg("weight"),
           nb::arg("bias").none() = nb::none(), nb::arg("f32_out") = false)
      .def("rms_norm", &Kernels::rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("eps"),
           nb::arg("add_one") = false)
      .def("add_rms_norm", &Kernels::add_rms_norm, nb::arg("x"), nb::arg("residual"),
           nb::arg("weight"), nb::arg("eps"), nb::arg("add_one") = false)
      .def("rope", &Kernels::rope, nb::arg("query"), nb::arg("key"), nb::arg("positions"),
           nb::arg("cos_sin"))
      .def("gated_act", &Kernels::gated_act, nb::arg("gate_up"), nb::arg("act"))
      .def("kv_write", &Kernels::kv_write, nb::arg("key"), nb::arg("value"), nb::arg("k_cache"),
           nb::arg("v_cache"), nb::arg("slots"))
      .def("copy_page", &Kernels::copy_page, nb::arg("k_cache"), nb::arg("v_cache"),
           nb::arg("source"), nb::arg("target"), nb::arg("num_tokens"))
      .def("move_pages", &Kernels::move_pages, nb::arg("k_cache"), nb::arg("v_cache"),
           nb::arg("host"), nb::arg("pages"), nb::arg("host_pages"), nb::arg("first_layer"),
           nb::arg("last_layer"), nb::arg("to_host"))
      .def("apply_token_mask", &Kernels::apply_token_mask, nb::arg("logits"), nb::arg("bitmask"))
      .def("plan_attention", &Kernels::plan_attention, nb::arg("query_start"), nb::arg("kv_lens"),
           nb::arg("page_table"), nb::arg("page_size"))
      .def("attention", &Kernels::attention, nb::arg("plan"), nb::arg("query"), nb::arg("k_cache"),
           nb::arg("v_cache"), nb::arg("scale"), nb::arg("window") = 0, nb::arg("softcap") = 0.0f);
}
