#include "attention/layer.h"

#include <memory>
#include <string>
#include <utility>

#include "attention/norm.h"
#include "runtime/status.h"

namespace trimaran {
namespace {

void require(int64_t have, int64_t need, const char* what) {
  if (have == need) return;
  throw KernelError(std::string(what) + ": has " + std::to_string(have) + ", need " + std::to_string(need));
}

// Not cleared: every value is written before it is read.
std::unique_ptr<float[]> floats_for(int64_t n, int64_t width) {
  return std::unique_ptr<float[]>(new float[static_cast<size_t>(n * width)]);
}

}  // namespace

AttentionLayer::AttentionLayer(ThreadPool& pool, Mla& mla, AttentionWeights weights)
    : pool_(pool), mla_(mla), weights_(std::move(weights)) {
  const MlaDims& dims = mla.dims();
  const AttentionWeights& w = weights_;
  const Linear& first = w.query_down == nullptr ? *w.query : *w.query_down;
  require(first.columns(), hidden(), "query: columns");
  if (w.query_down != nullptr)
    require(w.query->columns(), w.query_down->rows(), "query: columns behind its norm");
  const int64_t normed = w.query_down == nullptr ? 0 : w.query_down->rows();
  require(static_cast<int64_t>(w.query_norm.size()), normed, "query_norm: length");
  require(w.query->rows(), static_cast<int64_t>(dims.heads) * dims.query_width(), "query: rows");
  require(w.kv->rows(), dims.latent + dims.rope, "kv: rows");
  require(static_cast<int64_t>(w.kv_norm.size()), dims.latent, "kv_norm: length");
  require(w.output->columns(), static_cast<int64_t>(dims.heads) * dims.value, "output: columns");
  require(w.output->rows(), hidden(), "output: rows");
}

void AttentionLayer::run(const float* x, const AttentionInput& input, const CacheLayer& cache, float* out) {
  const AttentionWeights& w = weights_;
  const auto kv = floats_for(input.n, w.kv->rows());
  w.kv->multiply(x, input.n, kv.get());
  store_entries(pool_, {kv.get(), input.n, w.kv_norm.data(), w.eps, input.cos, input.sin, input.slots},
                cache);
  const auto query = floats_for(input.n, w.query->rows());
  project_query(x, input.n, query.get());
  const auto values = floats_for(input.n, w.output->columns());
  mla_.attend(*w.maps, {query.get(), input.cos, input.sin}, cache, input.segments, values.get());
  w.output->multiply(values.get(), input.n, out);
}

void AttentionLayer::project_query(const float* x, int64_t n, float* query) {
  const AttentionWeights& w = weights_;
  if (w.query_down == nullptr) {
    w.query->multiply(x, n, query);
    return;
  }
  const int64_t rank = w.query_down->rows();
  const auto narrow = floats_for(n, rank);
  w.query_down->multiply(x, n, narrow.get());
  rms_norm(pool_, narrow.get(), w.query_norm.data(), w.eps, n, rank, narrow.get());
  w.query->multiply(narrow.get(), n, query);
}

}  // namespace trimaran
