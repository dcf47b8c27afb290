#include "cpu/onednn_cache.h"

#include <array>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "cpu/matmul_panels.h"
#include "oneapi/dnnl/dnnl.h"

// OpenMP's C interface (stable ABI), declared here because <omp.h> comes only with some compilers.
// oneDNN's own runtime answers.
extern "C" {
int omp_get_max_threads(void);
void omp_set_num_threads(int);
}

namespace tandem::cpu {
namespace {

static_assert(DNNL_CPU_RUNTIME == DNNL_RUNTIME_OMP,
              "SingleThreaded limits OpenMP; another runtime of oneDNN needs its own way");

// While one lives, oneDNN calls of this thread run on this thread alone. The setting belongs to the
// calling thread (an OpenMP internal control variable), so no other is affected.
class SingleThreaded {
 public:
  SingleThreaded() : before_(omp_get_max_threads()) {
    if (before_ != 1) omp_set_num_threads(1);
  }
  ~SingleThreaded() {
    if (before_ != 1) omp_set_num_threads(before_);
  }
  SingleThreaded(const SingleThreaded&) = delete;
  SingleThreaded& operator=(const SingleThreaded&) = delete;

 private:
  int before_;
};

// Owns one oneDNN object.
template <typename T, dnnl_status_t (*kDestroy)(T)>
class Handle {
 public:
  Handle() = default;
  Handle(Handle&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Handle& operator=(Handle&&) = delete;
  ~Handle() {
    if (object_ != nullptr) (void)kDestroy(object_);
  }
  T get() const { return object_; }
  T* out() { return &object_; }

 private:
  T object_ = nullptr;
};

using EngineHandle = Handle<dnnl_engine_t, dnnl_engine_destroy>;
using StreamHandle = Handle<dnnl_stream_t, dnnl_stream_destroy>;
using MemoryHandle = Handle<dnnl_memory_t, dnnl_memory_destroy>;
using DescHandle = Handle<dnnl_memory_desc_t, dnnl_memory_desc_destroy>;
using AttrHandle = Handle<dnnl_primitive_attr_t, dnnl_primitive_attr_destroy>;
using PrimitiveDescHandle = Handle<dnnl_primitive_desc_t, dnnl_primitive_desc_destroy>;
using PrimitiveHandle = Handle<dnnl_primitive_t, dnnl_primitive_destroy>;

absl::Status FromOneDnn(dnnl_status_t status, std::string_view call) {
  switch (status) {
    case dnnl_success:
      return absl::OkStatus();
    case dnnl_unimplemented:
      return Unimplemented("oneDNN has no implementation (", std::string(call), ")");
    case dnnl_out_of_memory:
      return absl::ResourceExhaustedError(
          absl::StrCat("oneDNN: out of memory in ", std::string(call)));
    default:
      return absl::InternalError(absl::StrCat("oneDNN: ", std::string(call), " returned status ",
                                              static_cast<int>(status)));
  }
}

// The memory objects of one worker: source, weights, destination, scratch.
struct WorkerMemory {
  StreamHandle stream;
  std::array<MemoryHandle, 4> memory;
};

}  // namespace

struct OneDnnTileProduct::Impl {
  EngineHandle engine;
  PrimitiveHandle primitive;
  std::vector<WorkerMemory> workers;
};

OneDnnTileProduct::OneDnnTileProduct() : impl_(std::make_unique<Impl>()) {}
OneDnnTileProduct::~OneDnnTileProduct() = default;

#define TANDEM_RETURN_IF_ONEDNN_ERROR(call) TANDEM_RETURN_IF_ERROR(FromOneDnn((call), #call))

absl::StatusOr<std::shared_ptr<const OneDnnTileProduct>> OneDnnTileProduct::Create(int64_t rows,
                                                                                   int64_t k,
                                                                                   DType dtype,
                                                                                   int workers) {
  const SingleThreaded single;
  std::shared_ptr<OneDnnTileProduct> product(new OneDnnTileProduct());
  Impl& impl = *product->impl_;
  TANDEM_RETURN_IF_ONEDNN_ERROR(dnnl_engine_create(impl.engine.out(), dnnl_cpu, 0));

  const bool pairs = dtype == DType::kBF16;
  const dnnl_data_type_t type = pairs ? dnnl_bf16 : dnnl_f32;
  const auto describe = [](DescHandle& desc, int64_t height, int64_t width, dnnl_data_type_t of,
                           dnnl_format_tag_t layout) {
    const dnnl_dims_t dims = {height, width};
    return dnnl_memory_desc_create_with_tag(desc.out(), 2, dims, of, layout);
  };
  DescHandle a, panel, tile;
  TANDEM_RETURN_IF_ONEDNN_ERROR(describe(a, rows, k, type, dnnl_ab));
  TANDEM_RETURN_IF_ONEDNN_ERROR(
      describe(panel, k, kPanel, type, pairs ? dnnl_BA16a64b2a : dnnl_ab));
  TANDEM_RETURN_IF_ONEDNN_ERROR(describe(tile, rows, kPanel, dnnl_f32, dnnl_ab));
  AttrHandle attributes;
  TANDEM_RETURN_IF_ONEDNN_ERROR(dnnl_primitive_attr_create(attributes.out()));
  TANDEM_RETURN_IF_ONEDNN_ERROR(
      dnnl_primitive_attr_set_scratchpad_mode(attributes.get(), dnnl_scratchpad_mode_user));
  PrimitiveDescHandle primitive;
  TANDEM_RETURN_IF_ONEDNN_ERROR(
      dnnl_matmul_primitive_desc_create(primitive.out(), impl.engine.get(), a.get(), panel.get(),
                                        nullptr, tile.get(), attributes.get()));
  const char* implementation = "";
  TANDEM_RETURN_IF_ONEDNN_ERROR(dnnl_primitive_desc_query(primitive.get(), dnnl_query_impl_info_str,
                                                          0, static_cast<void*>(&implementation)));
  if (std::string_view(implementation).find("ref") != std::string_view::npos) {
    return Unimplemented("oneDNN has only '", implementation, "' for ", rows, " x ", k);
  }
  TANDEM_RETURN_IF_ONEDNN_ERROR(dnnl_primitive_create(impl.primitive.out(), primitive.get()));

  const_dnnl_memory_desc_t scratch =
      dnnl_primitive_desc_query_md(primitive.get(), dnnl_query_scratchpad_md, 0);
  product->scratch_bytes_ = static_cast<int64_t>(dnnl_memory_desc_get_size(scratch) + 63) / 64 * 64;
  impl.workers.resize(static_cast<size_t>(workers));
  for (WorkerMemory& worker : impl.workers) {
    TANDEM_RETURN_IF_ONEDNN_ERROR(
        dnnl_stream_create(worker.stream.out(), impl.engine.get(), dnnl_stream_default_flags));
    const const_dnnl_memory_desc_t descs[] = {a.get(), panel.get(), tile.get(), scratch};
    for (size_t i = 0; i < 4; ++i) {
      TANDEM_RETURN_IF_ONEDNN_ERROR(dnnl_memory_create(worker.memory[i].out(), descs[i],
                                                       impl.engine.get(), DNNL_MEMORY_NONE));
    }
  }
  return std::shared_ptr<const OneDnnTileProduct>(std::move(product));
}

absl::Status OneDnnTileProduct::Execute(const void* a, const void* panel, float* tile,
                                        void* scratch, int worker) const {
  const SingleThreaded single;
  const WorkerMemory& w = impl_->workers[static_cast<size_t>(worker)];
  // oneDNN's arguments are not const, but a source and weights are only read.
  void* const data[] = {const_cast<void*>(a), const_cast<void*>(panel), tile, scratch};
  const int arguments[] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD};
  dnnl_exec_arg_t list[4];
  for (size_t i = 0; i < 4; ++i) {
    TANDEM_RETURN_IF_ONEDNN_ERROR(dnnl_memory_set_data_handle(w.memory[i].get(), data[i]));
    list[i] = {arguments[i], w.memory[i].get()};
  }
  TANDEM_RETURN_IF_ONEDNN_ERROR(
      dnnl_primitive_execute(impl_->primitive.get(), w.stream.get(), 4, list));
  return absl::OkStatus();
}

OneDnnCache::OneDnnCache() : isa_(DetectCpu().isa) {}

absl::StatusOr<std::shared_ptr<const OneDnnTileProduct>> OneDnnCache::Get(int64_t rows, int64_t k,
                                                                          DType dtype,
                                                                          int workers) {
  const Key key{rows, k, dtype, workers};
  const absl::MutexLock lock(&mutex_);
  if (const auto found = index_.find(key); found != index_.end()) {
    entries_.splice(entries_.begin(), entries_, found->second);
    return found->second->result;
  }
  entries_.push_front({key, OneDnnTileProduct::Create(rows, k, dtype, workers)});
  index_[key] = entries_.begin();
  if (entries_.size() > kCapacity) {
    index_.erase(entries_.back().key);
    entries_.pop_back();
  }
  return entries_.front().result;
}

size_t OneDnnCache::size() const {
  const absl::MutexLock lock(&mutex_);
  return entries_.size();
}

}  // namespace tandem::cpu
