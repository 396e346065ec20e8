// Clients and workers of several shards at once, calls that are given up, and a shard that answers nonsense,
// to be compiled with AddressSanitizer and UndefinedBehaviorSanitizer, or with ThreadSanitizer.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "hop/client_call.h"
#include "hop/worker.h"
#include "hop_support.h"

namespace {

using namespace trimaran;
using namespace trimaran::hop;

constexpr ArenaDims kDims{kHidden, kTopK, 6, 3, DType::f32};

std::shared_ptr<ClientLine> make_line(const std::string& path, uint32_t first_slot = 0) {
  return std::make_shared<ClientLine>(std::make_shared<const Arena>(make_arena(path, kDims)), first_slot);
}

ClientBatch batch_of(const Tokens& tokens, int32_t layer = kLayer) {
  return {layer,
          static_cast<uint32_t>(tokens.ids.size() / kTopK),
          tokens.x.data(),
          tokens.ids.data(),
          tokens.weights.data(),
          DType::f32};
}

Clock::time_point soon() { return Clock::now() + std::chrono::seconds(30); }

// Two shards, each with a client of its own and one of both; a third of the calls is given up.
void test_shards_and_calls_given_up(Bench& bench, const std::string& folder) {
  CallGate gate(bench.engine);
  const ClientLines lines{make_line(folder + "/a"), make_line(folder + "/b")};
  std::vector<std::unique_ptr<ArenaWorker>> workers;
  for (const auto& line : lines) workers.push_back(std::make_unique<ArenaWorker>(line->arena(), gate, -1));
  for (unsigned turn = 0; turn < 300; ++turn) {
    Tokens tokens(1 + static_cast<int>(turn % 6), turn);
    auto call = ClientCall::start(lines, batch_of(tokens));
    if (call == nullptr) {  // slots of calls given up are not answered yet
      std::this_thread::yield();
      continue;
    }
    if (turn % 3 == 1) continue;
    CHECK(call->collect(soon(), tokens.y.data()) == 0);
    for (float& value : tokens.y) value /= 2;  // both shards have all experts
    CHECK(bench.answers_as_alone(tokens));
  }
  for (const auto& line : lines) {
    const auto deadline = soon();
    while (line->n_free() < kDims.n_slots) CHECK(Clock::now() < deadline);
  }
}

// Every word of a slot's control block is written at random meanwhile.
void test_a_shard_that_answers_nonsense(const std::string& folder) {
  const ClientLines lines{make_line(folder + "/mad")};
  std::atomic<bool> done{false};
  std::thread mad([&] {
    std::mt19937 random(3);
    while (!done) {
      const SlotControl& seen = lines[0]->arena().control(random() % kDims.n_slots);
      auto& control = const_cast<SlotControl&>(seen);
      control.status.store(static_cast<int32_t>(random()) % 9);
      const bool right = random() % 4 == 0;
      control.done_sequence.store(right ? control.request_sequence.load() : static_cast<uint32_t>(random()));
      control.client_sleeping.store(random() % 2);
    }
  });
  for (unsigned turn = 0; turn < 2000; ++turn) {
    Tokens tokens(2, turn);
    const auto call = ClientCall::start(lines, batch_of(tokens, static_cast<int32_t>(turn)));
    if (call == nullptr) continue;
    const auto deadline = Clock::now() + std::chrono::microseconds(turn % 2 * 500);
    (void)call->collect(deadline, tokens.y.data());
    CHECK(call->shard() <= 1);
  }
  done = true;
  mad.join();
}

// Slots are never handed out twice, nor lost, whatever the order.
void test_books_of_slots(const std::string& folder) {
  const auto line = make_line(folder + "/books", 1);
  std::mt19937 random(4);
  std::vector<ClientPlace> held;
  uint32_t n_abandoned = 0;
  for (int turn = 0; turn < 2000; ++turn) {
    const auto choice = random() % 4;
    if (choice < 2) {
      const auto place = line->take();
      CHECK(place.has_value() == (held.size() + n_abandoned < kDims.n_slots - 1));
      if (!place) continue;
      CHECK(place->slot >= 1 && place->slot < kDims.n_slots);
      for (const ClientPlace& other : held) CHECK(other.slot != place->slot);
      held.push_back(*place);
    } else if (!held.empty() && choice == 2) {
      line->release(held.back());
      held.pop_back();
    } else if (!held.empty()) {
      const ClientPlace place = held.back();
      held.pop_back();
      line->abandon(place);
      ++n_abandoned;
      CHECK(line->n_free() == kDims.n_slots - 1 - held.size() - n_abandoned);
      const_cast<SlotControl&>(line->arena().control(place.slot)).done_sequence.store(place.sequence);
      CHECK(line->n_free() == kDims.n_slots - 1 - held.size() - --n_abandoned);
    }
  }
}

}  // namespace

int main() {
  char folder[] = "/tmp/trimaran-client-XXXXXX";
  CHECK(mkdtemp(folder) != nullptr);
  Bench bench;
  test_books_of_slots(folder);
  test_shards_and_calls_given_up(bench, folder);
  test_a_shard_that_answers_nonsense(folder);
  for (const char* name : {"/a", "/b", "/mad", "/books"}) unlink((std::string(folder) + name).c_str());
  rmdir(folder);
  std::puts("the client passed");
}
