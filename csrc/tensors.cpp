#include "tensors.h"

namespace radix {

struct DLManagedTensor {
  uint32_t major, minor;
  void* manager_context;
  void (*deleter)(DLManagedTensor*);
  uint64_t flags;
  DLTensor tensor;
};

struct ExchangeTable {
  uint32_t major, minor;
  ExchangeTable* older;
  int (*allocate)(DLTensor* prototype, DLManagedTensor** out, void* error_context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*from_object)(void* object, DLManagedTensor** out);
  int (*to_object)(DLManagedTensor* tensor, void** object);
  int (*view_object)(void* object, DLTensor* out);
  int (*current_stream)(int32_t device_type, int32_t device_id, void** stream);
};

namespace {

constexpr int32_t kCpu = 1;
constexpr uint8_t kInt = 0, kFloat = 2, kBfloat = 4;

Element element_of(const DLTensor& t) {
  if (t.lanes != 1) return Element::other;
  if (t.code == kFloat && t.bits == 32) return Element::f32;
  if (t.code == kBfloat && t.bits == 16) return Element::bf16;
  if (t.code == kInt && t.bits == 32) return Element::i32;
  if (t.code == kInt && t.bits == 64) return Element::i64;
  return Element::other;
}

const char* name_of(Element element) {
  switch (element) {
    case Element::f32:
      return "float32";
    case Element::bf16:
      return "bfloat16";
    case Element::i32:
      return "int32";
    case Element::i64:
      return "int64";
    case Element::other:
      break;
  }
  return "another dtype";
}

void set_error(void*, const char*, const char* message) {
  PyErr_SetString(PyExc_MemoryError, message);
}

}  // namespace

bool Tensor::is_dense() const {
  int64_t expected = 1;
  for (int i = ndim() - 1; i >= 0; --i) {
    if (size(i) != 1 && stride(i) != expected) return false;
    expected *= size(i);
  }
  return true;
}

std::string Tensor::describe() const {
  std::string text = std::string(name_of(element)) + " [";
  for (int i = 0; i < ndim(); ++i) text += (i ? ", " : "") + std::to_string(size(i));
  text += "], strides [";
  for (int i = 0; i < ndim(); ++i) text += (i ? ", " : "") + std::to_string(stride(i));
  return text + "]";
}

Exchange::Exchange(PyObject* tensor_type) : type_(nullptr), table_(nullptr) {
  PyObject* capsule = PyType_Check(tensor_type)
                          ? PyObject_GetAttrString(tensor_type, "__dlpack_c_exchange_api__")
                          : nullptr;
  if (capsule != nullptr) {
    table_ =
        static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);
  }
  PyErr_Clear();
  if (table_ == nullptr || table_->major != 1 || table_->view_object == nullptr) {
    throw ArgumentError("tensor_type", "a type without DLPack 1's exchange table",
                        "pass torch.Tensor of torch 2.11 or newer");
  }
  type_ = reinterpret_cast<PyTypeObject*>(tensor_type);
}

Tensor Exchange::view(PyObject* object, const char* argument) const {
  if (!PyObject_TypeCheck(object, type_)) {
    throw ArgumentError(argument, Py_TYPE(object)->tp_name,
                        std::string("pass a ") + type_->tp_name);
  }
  Tensor tensor{object, argument, Element::other, {}};
  if (table_->view_object(object, &tensor.dl) != 0) throw PythonError{};
  tensor.element = element_of(tensor.dl);
  if (tensor.dl.device_type != kCpu)
    throw ArgumentError(argument, "a tensor on another device", "pass a CPU tensor");
  return tensor;
}

PyObject* Exchange::allocate(Element element, int ndim, const int64_t* shape, Tensor& out) const {
  DLTensor prototype{};
  prototype.device_type = kCpu;
  prototype.ndim = ndim;
  prototype.code = element == Element::bf16 ? kBfloat : element == Element::f32 ? kFloat : kInt;
  prototype.bits = element == Element::bf16 ? 16 : element == Element::i64 ? 64 : 32;
  prototype.lanes = 1;
  prototype.shape = const_cast<int64_t*>(shape);
  DLManagedTensor* managed = nullptr;
  if (table_->allocate(&prototype, &managed, nullptr, set_error) != 0) throw PythonError{};
  void* object = nullptr;
  out = {nullptr, "out", element, managed->tensor};
  if (table_->to_object(managed, &object) != 0) throw PythonError{};
  out.object = static_cast<PyObject*>(object);
  if (table_->view_object(object, &out.dl) != 0) {
    Py_DECREF(out.object);
    throw PythonError{};
  }
  return out.object;
}

}  // namespace radix
