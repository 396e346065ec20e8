// The one door to the expert engine: checks what peers sent, counts, and merges calls that wait for a layer.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "hop/arena.h"
#include "hop/call.h"
#include "hop/call_log.h"
#include "hop/call_stats.h"
#include "hop/gathering.h"
#include "hop/recorder.h"
#include "runtime/engine.h"

namespace trimaran::hop {

// Status codes of the hop that the engine itself does not have; the values are those of
// `trimaran.wire.Status`.
constexpr int32_t kBadSlot = 4;
constexpr int32_t kNotFinite = 5;
constexpr int32_t kShuttingDown = 7;

struct GateCounters {
  uint64_t calls;         // all, failed ones included
  uint64_t failures;      // answered with a status other than 0
  uint64_t tokens;        // of successful calls
  uint64_t engine_calls;  // fewer than `calls` where calls were merged, more where long ones were cut
  uint64_t merged_calls;  // calls that shared an engine call with others
  uint64_t gather_waits;  // engine calls that waited for company before they began
  uint64_t gather_ns;     // and how long in all
  uint64_t busy_ns;       // time spent in the engine
  Latencies busy_counts;  // engine calls by the time they took
  uint64_t bytes_read;    // expert weights that the engine read
  uint32_t waiting;       // calls inside or before the engine right now
};

// One engine call at a time, first come, first served. While it runs, other calls queue up; the next one then
// takes along every other call for its layer that waits and fits, so that the weights are read once for all
// of them. A call that finds the engine idle starts at once, unless another client's call for its layer is
// due and worth waiting for (gathering.h). A token's result depends on its company no more
// than on the tokens of its own call (engine.h): to the bit not at all, but on matrix tiles. Nor
// does much company delay a call: what rides along has at most four times its tokens, or 16.
class CallGate {
 public:
  // The engine must outlive the gate. gathers: whether a call may wait for another client's. rests: whether
  // the engine's threads sleep when no call waits, for those who call from elsewhere and need their cores.
  explicit CallGate(ExpertEngine& engine, bool gathers = true, bool rests = true)
      : engine_(engine),
        gathers_(gathers),
        rests_(rests),
        gathering_(static_cast<uint32_t>(engine.dims().n_experts), static_cast<uint32_t>(engine.dims().top_k),
                   static_cast<uint32_t>(engine.dims().max_tokens)) {}

  // A number for a client whose calls come one after another, layer by layer; `leave` it at the end.
  uint64_t join() { return 1 + n_clients_.fetch_add(1); }
  void leave(uint64_t client);

  // Status code of the call, for at most `max_tokens` tokens. Ids and weights are copied before they are
  // checked, so that a peer that goes on writing harms nothing but its own result; a call that fails its
  // checks never meets another. Calls of `client` 0 wait for nobody. Any thread may call.
  int32_t run(const Call& call, uint32_t max_tokens, uint64_t client = 0) noexcept;

  // The same for one slot of an arena; the slot's own layer and n_tokens are not looked at.
  int32_t run_slot(const Arena& arena, uint32_t slot, int32_t layer, uint32_t n_tokens,
                   uint64_t client = 0) noexcept;

  // Calls that pass their checks are written to `recorder` from now on; nullptr ends that.
  void record(std::shared_ptr<Recorder> recorder);

  const EngineDims& dims() const { return engine_.dims(); }
  GateCounters counters() const;
  const CallLog& log() const { return log_; }
  // By layer, how many tokens of successful calls the router gave to each expert; whole layers, all shards'
  // experts included.
  std::map<int32_t, std::vector<uint64_t>> expert_tokens() const { return stats_.expert_tokens(); }
  // By layer, how long engine calls took.
  std::map<int32_t, Latencies> latencies() const { return stats_.latencies(); }

 private:
  // A call that passed its checks, and its place in the queue.
  struct Ticket {
    Call call;
    Gathering::Ask ask;
    std::chrono::nanoseconds alone;  // what the engine took, 0 in company
    std::vector<int32_t> ids;
    std::vector<float> weights;
    int32_t status;
    bool done;
    bool leads;    // runs the next engine call
    Ticket* next;  // in the batch of one engine call
    std::condition_variable turn;
  };
  // Memory of merged calls; only the leading thread touches it.
  struct Merged {
    std::vector<uint8_t> x;
    std::vector<uint8_t> y;
    std::vector<int32_t> ids;
    std::vector<float> weights;
  };

  std::unique_ptr<Ticket> take_ticket();
  // What keeps a call from the engine, else ok. In the ticket's copies, skipped choices have weight 0.
  int32_t check(const Call& call, uint32_t max_tokens, Ticket& ticket) const;
  uint32_t count_experts(const std::vector<int32_t>& ids) const;
  void wait_and_serve(Ticket& ticket);
  void gather(std::unique_lock<std::mutex>& lock, const Ticket& first);
  void hand_out(Ticket& first);
  void take_batch(Ticket& first);
  void compute_batch(Ticket& first) noexcept;
  bool compute_merged(Ticket& first) noexcept;
  int32_t compute_alone(const Ticket& ticket) noexcept;
  void merge(const Ticket& first, Call& call);
  void split(Ticket& first, const Call& call);
  int32_t forward(const Call& call, const int32_t* ids, const float* weights);

  ExpertEngine& engine_;
  const bool gathers_;
  const bool rests_;
  std::mutex mutex_;           // guards the queue, the gathering, spare tickets and the recorder
  std::deque<Ticket*> queue_;  // by arrival
  bool is_led_ = false;        // somebody is in the engine, or about to be
  Gathering gathering_;
  std::condition_variable company_;  // somebody has joined the queue
  Merged merged_;
  std::vector<std::unique_ptr<Ticket>> spare_;
  std::shared_ptr<Recorder> recorder_;
  CallStats stats_;
  CallLog log_;
  std::atomic<uint64_t> calls_{0};
  std::atomic<uint64_t> failures_{0};
  std::atomic<uint64_t> tokens_{0};
  std::atomic<uint64_t> engine_calls_{0};
  std::atomic<uint64_t> merged_calls_{0};
  std::atomic<uint64_t> gather_waits_{0};
  std::atomic<uint64_t> gather_ns_{0};
  std::atomic<uint64_t> n_clients_{0};
  std::atomic<uint64_t> busy_ns_{0};
  std::atomic<uint32_t> waiting_{0};
};

}  // namespace trimaran::hop
