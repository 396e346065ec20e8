// Whole steps of a small model in one call, on buffers of exactly the right size, under AddressSanitizer and
// UndefinedBehaviorSanitizer, or ThreadSanitizer: against its parts one by one, to the bit.
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "attention_support.h"
#include "decoder/decoder.h"
#include "hop_support.h"
#include "runtime/status.h"

namespace {

using namespace trimaran;
using hop::Bench;
using hop::kHidden;

constexpr int kPage = 7, kMostAlways = 5, kRank = 19;
constexpr float kEps = 1e-6f;
constexpr int32_t kGoOn = 0;
constexpr MlaDims kDims{3, 10, 6, 36, 13, 0.2f};
constexpr EntryShape kShape{EntryFormat::bf16, kDims.latent, kDims.rope};

// A weight with memory of its own; small values, so that layers one behind another stay in range.
struct Floats {
  Floats(int rows, int columns, std::mt19937& random)
      : values(random_floats(static_cast<size_t>(rows) * static_cast<size_t>(columns), random)) {
    for (float& value : values) value *= 0.2f;
  }
  Matrix matrix() const {
    return {GgmlType::F32, reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(float),
            false};
  }
  std::vector<float> values;
};

struct Projection {
  Projection(ThreadPool& pool, const Primitives& primitives, int rows, int columns, std::mt19937& random)
      : weight(rows, columns, random), linear(pool, primitives, weight.matrix(), rows, columns) {}
  Floats weight;
  Linear linear;
};

// The parts of one layer. Queries have a LoRA in routed layers, none in others.
struct Block {
  Block(Bench& bench, Mla& mla, bool is_routed, std::mt19937& random)
      : pool(bench.pool),
        primitives(*select_isa("auto").primitives),
        input_norm(random_floats(kHidden, random)),
        post_norm(random_floats(kHidden, random)),
        always(pool, primitives, {kHidden, 21, 1, 1, kMostAlways}),
        maps(kDims, Floats(kDims.heads * kDims.nope, kDims.latent, random).values.data(),
             Floats(kDims.heads * kDims.latent, kDims.value, random).values.data(), false),
        narrow(pool, primitives, kRank, kHidden, random),
        query(pool, primitives, kDims.heads * kDims.query_width(), is_routed ? kRank : kHidden, random),
        kv(pool, primitives, kDims.latent + kDims.rope, kHidden, random),
        output(pool, primitives, kHidden, kDims.heads * kDims.value, random),
        feed{Floats(21, kHidden, random), Floats(21, kHidden, random), Floats(kHidden, 21, random)},
        gate_weight(hop::kExperts, kHidden, random),
        attention(
            pool, mla,
            {is_routed ? &narrow.linear : nullptr, random_floats(is_routed ? kRank : 0, random),
             &query.linear, &kv.linear, random_floats(kDims.latent, random), &maps, &output.linear, kEps}) {
    always.add_layer(0, {feed[0].matrix(), feed[1].matrix(), feed[2].matrix(), 0, 1});
    if (!is_routed) return;
    const GateSpec spec{hop::kExperts, hop::kTopK, false, 1, 1, 1, true, 1.5f};
    gate = std::make_unique<Gate>(pool, primitives, spec, gate_weight.matrix(), kHidden,
                                  random_floats(hop::kExperts, random));
  }
  DecoderParts parts(int index = hop::kLayer) {
    return {index, &attention, input_norm, post_norm, kEps, gate.get(), &always};
  }

  ThreadPool& pool;
  const Primitives& primitives;
  const std::vector<float> input_norm, post_norm;
  ExpertEngine always;
  std::unique_ptr<Gate> gate;
  const LatentMaps maps;
  Projection narrow, query, kv, output;
  const Floats feed[3];
  const Floats gate_weight;
  AttentionLayer attention;
};

// Caches of two layers for one request of `most` tokens, whose pages lie in reverse, and its angles.
struct OneRequest {
  explicit OneRequest(int64_t most) : pages(static_cast<size_t>((most + kPage - 1) / kPage)) {
    std::iota(pages.rbegin(), pages.rend(), 0);
    std::mt19937 random(7);
    angles = random_floats(static_cast<size_t>(most * kDims.rope / 2), random);
    for (int64_t p = 0; p < most; ++p) {
      slots.push_back(pages[static_cast<size_t>(p / kPage)] * kPage + static_cast<int32_t>(p % kPage));
    }
    for (auto& layer : memory) layer.resize(pages.size() * kPage * kShape.bytes());
  }
  CacheLayer cache(size_t layer) {
    return {memory[layer].data(), kShape, static_cast<int64_t>(pages.size()), kPage};
  }
  std::vector<int32_t> pages, slots;
  std::vector<float> angles;
  std::vector<uint8_t> memory[2];
};

// Calls step(rows of x, input) for tokens [first, first + n).
template <class Step>
void with_input(OneRequest& request, int64_t first, int64_t n, const Step& step) {
  const std::vector<float> angles(request.angles.begin() + first * kDims.rope / 2,
                                  request.angles.begin() + (first + n) * kDims.rope / 2);
  const std::vector<int32_t> slots(request.slots.begin() + first, request.slots.begin() + first + n);
  std::vector<Segment> segments;
  if (n > 0) segments.push_back({0, n, first, request.pages.data(), true});
  step(AttentionInput{n, angles.data(), angles.data(), slots.data(), segments});
}

// In steps of at most `piece` tokens.
std::vector<float> run_whole(Decoder& decoder, hop::CallGate* routed, const std::vector<float>& x,
                             int64_t piece) {
  const auto tokens = static_cast<int64_t>(x.size()) / kHidden;
  OneRequest request(std::max<int64_t>(tokens, 1));
  std::vector<float> out;
  for (int64_t first = 0; first == 0 || first < tokens; first += piece) {
    const int64_t n = std::min(piece, tokens - first);
    std::vector<float> rows(x.begin() + first * kHidden, x.begin() + (first + n) * kHidden);
    std::vector<LayerTimes> times(2);
    with_input(request, first, n, [&](const AttentionInput& input) {
      const auto result =
          decoder.run(rows.data(), input, {request.cache(0), request.cache(1)}, routed, times.data(), &kGoOn);
      CHECK(result.layers == 2 && result.status == 0);
    });
    for (const LayerTimes& t : times) {
      CHECK(t.attention <= t.gate && t.gate <= t.experts && t.experts <= t.always && t.always <= t.end);
    }
    out.insert(out.end(), rows.begin(), rows.end());
  }
  return out;
}

void add(std::vector<float>& x, const std::vector<float>& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

// The same by the parts, without a decoder; the dense network one token after another.
std::vector<float> run_parts(Bench& bench, Block* const (&blocks)[2], hop::CallGate* routed,
                             std::vector<float> x) {
  const auto n = static_cast<int64_t>(x.size()) / kHidden;
  OneRequest request(n);
  std::vector<float> normed(x.size()), delta(x.size()), always(x.size());
  with_input(request, 0, n, [&](const AttentionInput& input) {
    for (size_t i = 0; i < 2; ++i) {
      Block& block = *blocks[i];
      rms_norm(bench.pool, x.data(), block.input_norm.data(), kEps, n, kHidden, normed.data());
      block.attention.run(normed.data(), input, request.cache(i), delta.data());
      add(x, delta);
      rms_norm(bench.pool, x.data(), block.post_norm.data(), kEps, n, kHidden, normed.data());
      const int32_t zero = 0;
      const float one = 1;
      for (int64_t t = 0; t < n; ++t) {
        CHECK(block.always.forward(0, 1, &normed[static_cast<size_t>(t * kHidden)], &zero, &one,
                                   &always[static_cast<size_t>(t * kHidden)], DType::f32) == Status::ok);
      }
      if (block.gate != nullptr) {
        std::vector<int32_t> ids(static_cast<size_t>(n) * hop::kTopK);
        std::vector<float> weights(ids.size());
        block.gate->route(normed.data(), n, ids.data(), weights.data());
        const auto count = static_cast<uint32_t>(n);
        CHECK(routed->run(
                  {hop::kLayer, count, normed.data(), ids.data(), weights.data(), delta.data(), DType::f32},
                  count) == 0);
        add(delta, always);
      }
      add(x, block.gate == nullptr ? always : delta);
    }
  });
  return x;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// One token, the most that an engine takes at once, one more, and many times that; all at once and in pieces.
void test_steps(Bench& bench, Block& dense, Block& routed) {
  hop::CallGate gate(bench.engine);
  DecoderLayer first(bench.pool, dense.parts(0)), second(bench.pool, routed.parts());
  Decoder decoder({&first, &second});
  CHECK(decoder.is_routed() && decoder.hidden() == kHidden && second.top_k() == hop::kTopK);
  std::mt19937 random(5);
  for (const size_t tokens :
       {1, kMostAlways, kMostAlways + 1, hop::kMost, hop::kMost + 1, 5 * hop::kMost + 3}) {
    const auto x = random_floats(tokens * kHidden, random);
    const auto expected = run_parts(bench, {&dense, &routed}, &gate, x);
    CHECK(std::isfinite(std::accumulate(expected.begin(), expected.end(), 0.0f)));
    for (const int64_t piece : {1000, 1, 9}) CHECK(same_bits(run_whole(decoder, &gate, x, piece), expected));
  }
  CHECK(run_whole(decoder, &gate, {}, 1).empty());
}

// The layer before was computed, and the status is the engine's.
void test_a_layer_that_fails(Bench& bench, Block& dense, Block& routed) {
  hop::CallGate gate(bench.engine);
  DecoderLayer first(bench.pool, dense.parts(0)), second(bench.pool, routed.parts(hop::kLayer + 1));
  Decoder decoder({&first, &second});
  OneRequest request(3);
  std::mt19937 random(6);
  auto x = random_floats(3 * kHidden, random);
  std::vector<LayerTimes> times(2);
  with_input(request, 0, 3, [&](const AttentionInput& input) {
    const auto result =
        decoder.run(x.data(), input, {request.cache(0), request.cache(1)}, &gate, times.data(), &kGoOn);
    CHECK(result.layers == 1 && result.status == static_cast<int32_t>(Status::bad_layer));
  });
}

void test_a_stop_before_the_first_layer(Bench& bench, Block& dense, Block& routed) {
  hop::CallGate gate(bench.engine);
  DecoderLayer first(bench.pool, dense.parts(0)), second(bench.pool, routed.parts());
  Decoder decoder({&first, &second});
  OneRequest request(3);
  std::mt19937 random(8);
  const auto given = random_floats(3 * kHidden, random);
  auto x = given;
  std::vector<LayerTimes> times(2);
  const int32_t stop = 1;
  with_input(request, 0, 3, [&](const AttentionInput& input) {
    const auto result =
        decoder.run(x.data(), input, {request.cache(0), request.cache(1)}, &gate, times.data(), &stop);
    CHECK(result.layers == 0 && result.status == 0);
  });
  CHECK(same_bits(x, given));
}

template <class Action>
void check_refused(const Action& action) {
  try {
    action();
  } catch (const KernelError&) {
    return;
  }
  CHECK(!"was taken");
}

void test_refusals(Bench& bench, Block& dense, Block& routed) {
  const auto refuse = [&](DecoderParts parts) {
    check_refused([&] { DecoderLayer layer(bench.pool, std::move(parts)); });
  };
  auto parts = routed.parts();
  parts.input_norm.pop_back();
  refuse(parts);
  parts = routed.parts();
  parts.post_norm.push_back(1);
  refuse(parts);
  parts = dense.parts();
  parts.always = nullptr;
  refuse(parts);
  parts.always = &bench.engine;  // of several experts
  refuse(parts);
  ExpertEngine empty(bench.pool, *select_isa("auto").primitives, {kHidden, 21, 1, 1, kMostAlways});
  parts.always = &empty;
  refuse(parts);
  check_refused([] { Decoder decoder({}); });
  check_refused([] { Decoder decoder({nullptr}); });
}

}  // namespace

int main() {
  Bench bench;
  Mla mla(bench.pool, *select_isa("auto").primitives->attention, kDims);
  std::mt19937 random(4);
  Block dense(bench, mla, false, random), routed(bench, mla, true, random);
  test_steps(bench, dense, routed);
  test_a_layer_that_fails(bench, dense, routed);
  test_a_stop_before_the_first_layer(bench, dense, routed);
  test_refusals(bench, dense, routed);
  std::puts("the decoder passed");
}
